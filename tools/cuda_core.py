"""Every CUDA kernel once, on small problems, forward and back: what gpu_check.sh runs first, and
under compute-sanitizer, where each launch costs a hundred times its due.

    python tools/cuda_core.py [--seconds 50] [--watch 20]

A problem is named before it runs, so that the last line names the one that hangs. With --watch a
process of its own runs the problems: one that takes longer than so many seconds is ended there, as
HUNG, and another process goes on with the next. Exit status: 0; 1 where a problem failed or hung;
2 without a GPU; 3 where time left some out.

Every row of csrc/cuda/tiles.h, with an H that fills it or one that leaves room, packed or not, and
the stepwise kernels in every dtype; the first of each kind come first, in case time runs out.
Results are only looked at for being finite: what they should be is the business of the tests.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks puts it last
from benchmarks import gpu_tiles
from support.problems import MODES, Problem, run

OUTCOMES = ("ran", "failed", "hung", "this GPU cannot run", "left out for time")
MOST = 4  # problems that may end their process before the rest is given up
SMALL = Problem(T=3, B=3, I=4, hx="grad")


def by_rank(tiles: list[gpu_tiles.Tile]) -> list[gpu_tiles.Tile]:
    """The first tile of each cell and kernel, then the second ones, and so on."""
    seen: Counter[tuple[str, bool]] = Counter()
    ranked = []
    for tile in tiles:
        kind = (tile.cell, tile.cluster > 1)
        ranked.append((seen[kind], tile.index, tile))
        seen[kind] += 1
    return [tile for _, _, tile in sorted(ranked, key=lambda entry: entry[:2])]


def core() -> Iterator[tuple[str, str, Problem]]:
    """(variable, its value, problem)."""
    for mode in MODES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            problem = replace(SMALL, mode=mode, H=5, dtype=dtype, form="unsorted")
            yield "FUSEDRNN_CUDA_KERNEL", "stepwise", replace(problem, bidirectional=True)
    yield "FUSEDRNN_CUDA_KERNEL", "stepwise", replace(SMALL, P=2, bidirectional=True)
    for tile in by_rank(gpu_tiles.tiles()):
        mode = "RNN_RELU" if tile.mode == "RNN_TANH" and tile.index % 2 else tile.mode
        problem = replace(SMALL, mode=mode, H=tile.hidden)
        if tile.index % 2:
            problem = replace(
                problem, H=tile.hidden - 3, form="unsorted", bidirectional=True, bias=False
            )
        yield "FUSEDRNN_CUDA_TILE", str(tile.index), problem


def run_from(first: int, seconds: float, hang: float) -> int:
    """Runs the problems from number `first` on in this process. What one raises ends it: after most
    errors of a kernel, no other runs in the process."""
    end = time.monotonic() + seconds
    torch.set_default_device("cuda")
    torch.ones(1).sum().item()  # the driver's start is no problem's
    counts: Counter[str] = Counter()
    for number, (name, value, problem) in enumerate(core()):
        told = f"{name}={value} {problem}"
        if number < first:
            continue
        if time.monotonic() >= end:
            print(f"left out: {told}: no time left")
            counts["left out for time"] += 1
            continue
        print(f"begin {number} {told}", flush=True)
        if hang:
            faulthandler.dump_traceback_later(hang, exit=True)
        os.environ[name] = value
        try:
            results = run(problem, "fusedrnn")
            torch.cuda.synchronize()
        except ValueError as error:  # the GPU has no such kernel
            print(f"left out: {told}: {str(error).splitlines()[0]}")
            counts["this GPU cannot run"] += 1
            continue
        finally:
            del os.environ[name]
            faulthandler.cancel_dump_traceback_later()
        bad = [key for key, t in results.items() if t is not None and not t.isfinite().all()]
        if bad:
            print(f"FAILED: {told}: not finite: {', '.join(bad)}")
        counts["failed" if bad else "ran"] += 1
    return ended(counts)


def ended(counts: Counter[str]) -> int:
    """The last line, and the exit status."""
    told = ", ".join(f"{counts[what]} {what}" for what in OUTCOMES if counts[what])
    print(f"cuda_core: {told or 'nothing ran'}", flush=True)
    if counts["failed"] or counts["hung"] or not counts["ran"]:
        return 1
    return 3 if counts["left out for time"] else 0


def watched(command: Sequence[str], seconds: float) -> int:
    """Runs `command --first N --seconds S` from problem 0 on, and again behind each problem that
    hangs or ends it, at most MOST times."""
    end = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    first = 0
    while counts["hung"] + counts["failed"] < MOST:
        options = ["--first", str(first), "--seconds", str(end - time.monotonic())]
        child = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert child.stdout
        begun, hung, last = None, False, ""
        heads: Counter[str] = Counter()  # of the lines that tell of problems
        try:
            for line in child.stdout:
                if not line.startswith("cuda_core: "):
                    print(line, end="", flush=True)
                last = line.strip() or last
                heads[line.split(" ")[0]] += 1
                hung = hung or line.startswith("Timeout (")
                begun = re.match(r"begin (\d+) (.*)", line) or begun
        except BaseException:  # an interrupt, say, which a process that waits for a GPU ignores
            child.kill()
            raise
        status = child.wait()
        if begun is None or last.startswith("cuda_core: "):
            counts.update({what: int(n) for n, what in re.findall(r"(\d+) ([a-zA-Z ]+)", last)})
            return ended(counts) or status
        counts["hung" if hung else "failed"] += 1
        counts["failed"] += heads["FAILED:"]
        counts["this GPU cannot run"] += heads["left"]
        counts["ran"] += heads["begin"] - 1 - heads["FAILED:"] - heads["left"]
        why = "it did not end" if hung else f"status {status}, {last}"
        print(f"{'HUNG' if hung else 'FAILED'}: {begun[2]}: {why}", flush=True)
        first = int(begun[1]) + 1
    print(f"left out: whatever comes after {first - 1}: {MOST} problems ended their process")
    return ended(counts)


def main() -> int:
    top = argparse.ArgumentParser(description="Runs every CUDA kernel once, small.")
    top.add_argument("--seconds", type=float, default=3600, help="then no problem is begun")
    top.add_argument("--watch", type=float, help="seconds after which a problem counts as hanging")
    top.add_argument("--first", type=int, default=0, help="the number of the first problem to run")
    top.add_argument("--hang", type=float, default=0, help="seconds until the process is ended")
    options = top.parse_args()
    if not torch.cuda.is_available():
        print("cuda_core.py: torch sees no GPU", file=sys.stderr)
        return 2
    if options.watch:
        return watched([sys.executable, __file__, "--hang", str(options.watch)], options.seconds)
    return run_from(options.first, options.seconds, options.hang)


if __name__ == "__main__":
    sys.exit(main())

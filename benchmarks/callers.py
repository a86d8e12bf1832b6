"""An inference server's case: several Python threads call one module at once.

    python benchmarks/callers.py --out DIR [--callers 1,2,4] [--quick]

Writes callers.json and from it callers.md: calls a second of all callers together, fusedrnn's and
torch.nn's in turn. Every call runs on one thread of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

if not __package__:  # a script finds only its siblings
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from benchmarks.bench_layers import Layer
from benchmarks.report import times, write

ROUNDS, SECONDS = 15, 0.2  # of a side in a round
CASES = [
    Layer(group="Reuters stack", cell="LSTM", step=harness.INFERENCE, T=100, B=B, I=128, H=128, L=2)
    for B in (1, 8)
]


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds: calls a second, and of ours / torch.nn's in the same round."""

    name: str
    callers: int
    ours: float
    torch: float
    ratio: float


def calls_a_second(call: harness.Call, callers: int, seconds: float) -> float:
    counts = [0] * callers
    start = threading.Barrier(callers + 1)
    stop = threading.Event()

    def work(i: int) -> None:
        torch.set_num_threads(1)  # OpenMP keeps it by thread
        with torch.inference_mode():
            call()
            start.wait()
            while not stop.is_set():
                call()
                counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def measure(layer: Layer, callers: int, rounds: int, seconds: float) -> Measured:
    torch.manual_seed(0)
    modules, (x, slope) = layer.modules(), layer.inputs()
    sides = [layer.call(module, x, slope) for module in modules]
    with torch.inference_mode():
        if harness.disagreement(sides[0](), sides[1]()) > 1e-4:
            raise AssertionError(f"{layer.shape}: results differ")
    found = [[calls_a_second(side, callers, seconds) for side in sides] for _ in range(rounds)]
    return Measured(
        f"{layer.group}: {layer.cell} {layer.shape}",
        callers,
        statistics.median(ours for ours, _ in found),
        statistics.median(theirs for _, theirs in found),
        statistics.median(ours / theirs for ours, theirs in found),
    )


def page(results: dict[str, Any]) -> str:
    """Markdown of what callers.json holds."""
    lines = [
        "# Several callers of one module",
        "",
        f"{results['cpu']}, {results['cores']} cores, {results['isa']}, torch {results['torch']}, "
        f"commit {results['commit']}, {results['date']}. Inference, float32, one thread a call; "
        "calls a second of all callers together. Made by `python benchmarks/callers.py`.",
        "",
        "| case | callers | fusedrnn | torch.nn | ratio | against one caller |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    alone: dict[str, float] = {}
    for m in (Measured(**found) for found in results["measured"]):
        first = alone.setdefault(m.name, m.ours / m.callers)
        figures = [f"{m.ours:.0f}", f"{m.torch:.0f}", times(m.ratio), times(m.ours / first)]
        lines.append(f"| {' | '.join([m.name, str(m.callers), *figures])} |")
    return "\n".join(lines) + "\n"


def options() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description="Times several callers of one module.")
    top.add_argument("--out", type=Path, required=True, help="folder for callers.json and .md")
    top.add_argument(
        "--callers",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[1, 2, 4],
        help="how many at once, each measured (1,2,4)",
    )
    top.add_argument("--quick", action="store_true", help="few rounds of short sequences")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    arguments = options().parse_args(argv)
    cases, rounds, seconds = CASES, ROUNDS, SECONDS
    if arguments.quick:
        cases, rounds, seconds = [replace(case, T=5) for case in CASES], 2, 0.02
    run = asdict(harness.new_run(harness.Tier.DEFAULT))
    results = {key: run[key] for key in ("date", "commit", "cpu", "cores", "isa", "torch")}
    results["measured"] = [
        asdict(measure(case, callers, rounds, seconds))
        for case in cases
        for callers in arguments.callers
    ]
    write(arguments.out / "callers.json", results, page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every CUDA kernel once, on small problems, forward and back: what gpu_check.sh runs under
compute-sanitizer, where each launch costs a hundred times its due.

    python tests/cuda_core.py [--seconds 50]

Every row of csrc/cuda/tiles.h, with an H that fills it or one that leaves room, packed or not, and
the stepwise kernels in every dtype; the first of each kind come first, in case time runs out.
Results are only looked at for being finite: what they should be is the business of the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from problems import MODES, Problem, run

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after whatever is installed
from benchmarks import gpu_tiles

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


def main() -> int:
    options = argparse.ArgumentParser(description="Runs every CUDA kernel once, small.")
    options.add_argument("--seconds", type=float, default=3600, help="then no problem is begun")
    end = time.monotonic() + options.parse_args().seconds
    if not torch.cuda.is_available():
        print("cuda_core.py: torch sees no GPU", file=sys.stderr)
        return 2
    torch.set_default_device("cuda")
    ran = 0
    for name, value, problem in core():
        if time.monotonic() >= end:
            print(f"left out: {name}={value} {problem}: no time left")
            continue
        os.environ[name] = value
        try:
            results = run(problem, "fusedrnn")
            torch.cuda.synchronize()
        except ValueError as error:  # the GPU has no such kernel
            print(f"left out: {name}={value} {problem}: {str(error).splitlines()[0]}")
            continue
        finally:
            del os.environ[name]
        bad = [key for key, t in results.items() if t is not None and not t.isfinite().all()]
        if bad:
            print(f"FAILED: {name}={value} {problem}: not finite: {', '.join(bad)}")
            return 1
        ran += 1
        print(f"{name}={value} {problem}", flush=True)
    print(f"cuda_core: {ran} problems ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())

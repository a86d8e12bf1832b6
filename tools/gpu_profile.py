"""The recurrences that gpu_check.sh puts under Nsight Compute, once each, forward and back.

    ncu ... python tools/gpu_profile.py [--steps 50]

One for each way to exchange h, by its key in csrc/cuda/tiles.h: within a block, in a small cluster,
in the largest. As many rows as fill the GPU once, and too few steps to matter: what is counted, is
counted a step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks puts it last
from benchmarks import gpu_tiles
from fusedrnn import ops
from support.problems import Problem, run

KEYS = (("LSTM", 128, 1, 1), ("LSTM", 256, 4, 1), ("LSTM", 512, 16, 4))  # H, blocks, rows


def chosen() -> list[gpu_tiles.Tile]:
    """The tiles of KEYS, wherever they are in the table."""
    found = {(t.cell, t.hidden, t.cluster, t.rows): t for t in gpu_tiles.tiles()}
    return [found[key] for key in KEYS]


def main() -> int:
    """0; 2 without a GPU; 3 where it has no such clusters."""
    top = argparse.ArgumentParser(description="Runs the recurrences to be profiled, once each.")
    top.add_argument("--steps", type=int, default=50, help="of time (50)")
    steps = top.parse_args().steps
    if not torch.cuda.is_available():
        print("gpu_profile.py: torch sees no GPU", file=sys.stderr)
        return 2
    torch.set_default_device("cuda")
    limits = ops.cuda_device(torch.cuda.current_device())
    left_out = []
    for tile in chosen():
        B = tile.rows * max(1, gpu_tiles.places(tile, limits))
        print(f"begin {tile}, B {B}, {steps} steps", flush=True)
        try:
            with gpu_tiles.only(tile):
                run(Problem(tile.mode, T=steps, B=B, I=16, H=tile.hidden), "fusedrnn")
            torch.cuda.synchronize()
        except ValueError as error:  # the GPU cannot run it: the plan says why
            left_out.append(f"{tile}: {str(error).splitlines()[0]}")
    print(f"gpu_profile: left out: {'; '.join(left_out)}" if left_out else "gpu_profile: all ran")
    return 3 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())

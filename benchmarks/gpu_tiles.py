"""Times each persistent kernel, forced, beside what the plan estimates it to cost.

    python -m benchmarks gpu-tiles --out DIR [--tiles 7,8] [--without 9] [--seconds 60]

One line for each row of csrc/cuda/tiles.h and pass, and DIR/gpu_tiles.jsonl. Every kernel runs
alone (as many batch rows as one block or cluster takes) and on the whole GPU (as many as fill it
once): the first gives the wait in a step, the second shows what sharing the GPU costs. These are
the figures to put in place of the estimates in csrc/cuda/tuning.h. Kernel times come from the
profiler, without the products before and after. `--estimates sm_90` needs no GPU and prints the
plan's side.

A tile is named before it runs, and the file is written anew after each.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu, options
from benchmarks.cases import GRADIENTS, Setting
from benchmarks.gpu_device import described, precision_of
from benchmarks.gpu_kernels import kernel_times, passes
from benchmarks.layers import Layer
from benchmarks.report.figures import columns
from benchmarks.results import Line, line, write
from fusedrnn import ops
from fusedrnn.plan import GPUS

TABLE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "tiles.h"
CELLS = {
    "kLstm": ("LSTM", "LSTM"),
    "kGru": ("GRU", "GRU"),
    "kRnnTanh": ("RNN", "RNN_TANH"),
    "kMgu": ("MGU", "MGU"),
}
STEPS = 100
UNIT, WHOLE = "one", "full"


@dataclass(frozen=True)
class Tile:
    """A row of kTiles: what it is made for."""

    index: int
    cell: str  # of the module
    mode: str  # of the operators
    hidden: int
    cluster: int
    rows: int

    def __str__(self) -> str:
        return f"{self.index}: {self.cell} H{self.hidden} blocks {self.cluster} rows {self.rows}"


@dataclass(frozen=True)
class Cost:
    """Microseconds a time step takes, and what the plan thought; None where it was not run."""

    tile: int
    name: str
    step: str  # "forward" or "backward"
    units: str  # UNIT: one block or cluster, WHOLE: as many as run at once
    B: int
    estimate_us: float
    threads: int
    shared_bytes: int
    us: float | None = None


def tiles(table: Path = TABLE) -> list[Tile]:
    """The rows of kTiles, read from the source."""
    rows = re.findall(
        r"^\s*\{Cell::(\w+), (\d+), (\d+), (\d+), \{", table.read_text("utf-8"), re.MULTILINE
    )
    return [
        Tile(index, *CELLS[cell], int(hidden), int(cluster), int(count))
        for index, (cell, hidden, cluster, count) in enumerate(rows)
    ]


@contextmanager
def only(tile: Tile) -> Iterator[ops.Restriction]:
    """Restricts every plan to this tile; gives the restriction."""
    name = "FUSEDRNN_CUDA_TILE"
    before = os.environ.get(name)
    os.environ[name] = str(tile.index)
    try:
        yield ops.cuda_restriction()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def places(tile: Tile, limits: dict[str, Any]) -> int:
    """Blocks or clusters of a kernel that the GPU runs side by side, each with its
    multiprocessors to itself."""
    count: int = limits["multiprocessors"]
    if tile.cluster > 1:
        count = limits["clusters"][tile.cluster.bit_length() - 1]
    return count


def planned(
    tile: Tile, backward: bool, B: int, limits: dict[str, Any], allowed: ops.Restriction
) -> dict[str, Any]:
    """The plan for this tile; raises ValueError where the GPU cannot run it."""
    sizes = {"T": STEPS, "B": B, "I": tile.hidden, "H": tile.hidden, "P": 0, "D": 1}
    flags = {"dtype": "float32", "packed": False, "training": True}
    return ops.cuda_plan({"mode": tile.mode, **sizes, **flags}, limits, allowed, backward)


def costs(tile: Tile, limits: dict[str, Any], device: torch.device | None) -> list[Cost]:
    """Both passes, alone and on the whole GPU; timed only where there is a device."""
    found = []
    for units in (UNIT, WHOLE):
        B = tile.rows * (1 if units == UNIT else max(1, places(tile, limits)))
        layer = Layer(
            group="tile", cell=tile.cell, step=GRADIENTS, T=STEPS, B=B, I=tile.hidden, H=tile.hidden
        )
        with only(tile) as allowed:
            calls = passes(layer, Setting(device)) if device else {}
            for step in ("forward", "backward"):
                plan = planned(tile, step == "backward", B, limits, allowed)
                us = None
                if device:
                    kernels = kernel_times(calls[step][0], device)
                    us = sum(t for name, t in kernels.items() if "fusedrnn" in name) / STEPS
                    if not us:
                        raise RuntimeError("the profiler saw no kernel of ours")
                cost = Cost(
                    tile.index,
                    str(tile),
                    step,
                    units,
                    B,
                    plan["recurrence_us"],
                    plan["threads"],
                    plan["shared_bytes"],
                    us,
                )
                found.append(cost)
    return found


def table(found: Sequence[Cost]) -> list[str]:
    head = ("tile", "pass", "units", "B", "us a step", "estimate", "quotient")
    rows = [
        (
            cost.name,
            cost.step,
            cost.units,
            str(cost.B),
            f"{cost.us:.3f}" if cost.us else "",
            f"{cost.estimate_us:.3f}",
            f"{cost.us / cost.estimate_us:.2f}" if cost.us else "",
        )
        for cost in found
    ]
    return columns([head, *rows], left=3)


def parser() -> argparse.ArgumentParser:
    top = options.parser("gpu-tiles", "Times each persistent kernel, forced.")
    top.add_argument("--out", type=Path, required=True, help="folder for gpu_tiles.jsonl")
    top.add_argument("--tiles", type=options.numbers, help="as 7,8")
    top.add_argument("--without", type=options.numbers, default=[], help="as 9: known to hang, say")
    top.add_argument("--seconds", type=float, default=60, help="then no tile is begun (60)")
    top.add_argument("--estimates", choices=GPUS, help="the plan's side alone, for this GPU")
    return top


@dataclass
class Found:
    """What a run knows so far."""

    gpu: dict[str, str]
    limits: dict[str, Any]
    costs: list[Cost]
    left_out: dict[str, str]

    def save(self, path: Path) -> None:
        left_out: list[Line] = [{"left_out": t, "reason": why} for t, why in self.left_out.items()]
        header = {"gpu": self.gpu, "limits": self.limits}
        write(path, "gpu_tiles", header, [*map(line, self.costs), *left_out])


def main(argv: Sequence[str]) -> int:
    """0; 1 when a tile that the plan takes failed; 3 when time or --without left tiles out."""
    arguments = parser().parse_args(argv)
    device = None
    if arguments.estimates:
        limits = dict(GPUS[arguments.estimates])
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        limits = ops.cuda_device(device.index)
    else:
        print("gpu-tiles: torch sees no GPU; --estimates sm_90 does without", file=sys.stderr)
        return 2
    gpu_told = described(device) if device else {"name": f"estimates, {arguments.estimates}"}
    found = Found(gpu_told, limits, [], {})
    path = arguments.out / "gpu_tiles.jsonl"
    wanted = [t for t in tiles() if arguments.tiles is None or t.index in arguments.tiles]
    failed, partial = 0, 0
    end = time.monotonic() + arguments.seconds
    for tile in wanted:
        if tile.index in arguments.without or time.monotonic() >= end:
            without = tile.index in arguments.without
            why = "--without it" if without else f"{arguments.seconds:g} s {gpu.USED_UP}"
            found.left_out[str(tile)] = why
            partial += 1
            continue
        print(f"begin {tile}", flush=True)
        try:
            with precision_of("ieee"):
                found.costs += costs(tile, limits, device)
        except ValueError as error:  # the GPU cannot run it: the plan says why
            found.left_out[str(tile)] = str(error)
        except Exception as error:  # named and counted; the others still run
            found.left_out[str(tile)] = gpu.reason(error)
            failed += 1
        found.save(path)
    found.save(path)
    print("\n".join(table(found.costs)))
    for name, reason in found.left_out.items():
        print(f"left out: {name}: {reason.splitlines()[0]}")
    print(f"written: {path}")
    print(
        f"gpu_tiles: {len(wanted) - len(found.left_out)} of {len(wanted)} tiles timed, "
        f"{failed} failed, {partial} left out"
    )
    return 1 if failed else 3 if partial else 0

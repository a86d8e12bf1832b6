"""The persistent kernels there are, csrc/cuda/tiles.h: each row of its table in either pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.commands import compiler, output_of
from support.paths import CSRC, TESTS


@dataclass(frozen=True)
class Kernel:
    row: int
    direction: str
    mode: str
    gates: int
    hidden: int
    cluster: int
    rows: int
    lanes: int  # threads of a warp that split a sum
    held: int  # float4 of weights that a thread keeps in registers, at most
    threads: int
    registers: int
    shared_bytes: int
    units: int  # of a block
    units_of_thread: int
    outputs: int  # sums of a thread for one batch row
    quads: int  # float4 of weights of a thread
    shared_quads: int  # of them in shared memory

    @property
    def cell(self) -> str:
        """Its mode, but for the nonlinearity, which a kernel takes either of."""
        return self.mode.partition("_")[0]

    @property
    def backward(self) -> bool:
        return self.direction == "backward"


def kernels(folder: Path) -> list[Kernel]:
    """The whole table, by a program that includes it and is built in `folder`."""
    source, program = TESTS / "cuda" / "tiles_table.cpp", str(folder / "tiles_table")
    output_of([*compiler(), "-std=c++20", f"-I{CSRC}", str(source), "-o", program])
    table = [Kernel(**json.loads(line)) for line in output_of([program]).splitlines()]
    assert table
    return table


def cells_of(table: Sequence[Kernel]) -> list[str]:
    """Every cell that has a row, in the table's order."""
    return list(dict.fromkeys(kernel.cell for kernel in table))

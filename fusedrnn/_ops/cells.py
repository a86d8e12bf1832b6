"""The table of cells, as the extension has it (csrc/model/cell.h)."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _C


@dataclass(frozen=True)
class Cell:
    """A cell and what the code around it asks of it.

    Attributes:
        name: the operators' ``mode``.
        gates: G, blocks of H rows in a weight.
        slots: what a step keeps of each hidden unit.
        has_c: whether it has a second state, c.
        has_torch: whether torch.nn has a layer of the same mathematics.
        family: the cell whose tiles and measurements it shares.
    """

    name: str
    gates: int
    slots: int
    has_c: bool
    has_torch: bool
    family: str


CELLS = {row["name"]: Cell(**row) for row in _C.cells()}

"""Layers and cells alone, forward and backward or inference; ``--full`` adds the grid."""

from __future__ import annotations

import pytest

from benchmarks.cases import Case
from benchmarks.layers import CELLS, Cell, grid, named
from benchmarks.timing import Measure

CASES: list[Case] = [
    *named(),
    *(Cell(cell=cell, B=1, I=128, H=128, headline=cell == "LSTM") for cell in CELLS),
    *grid(),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_layer(case: Case, threads: int, measure: Measure) -> None:
    measure(case, threads)

"""Layers and cells alone, forward and backward or inference; ``--full`` adds the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks import timing
from benchmarks.cases import Case
from benchmarks.layers import CELLS, Cell, grid, named
from benchmarks.results import Run

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

CASES: list[Case] = [
    *named(),
    *(Cell(cell=cell, B=1, I=128, H=128, headline=cell == "LSTM") for cell in CELLS),
    *grid(),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_layer(
    case: Case,
    threads: int,
    effort: timing.Effort,
    benchmark: BenchmarkFixture,
    run: Run,
) -> None:
    timing.measure(case, threads, effort, benchmark, run)

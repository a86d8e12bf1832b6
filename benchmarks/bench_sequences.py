"""Lengths, resets and checkpoints, each beside the other ways to do the same; ``--full`` adds the
GRU, rare resets and long sequences. ``python -m benchmarks sequences`` adds memory and the aims."""

from __future__ import annotations

from benchmarks.cases import Sided
from benchmarks.sequence_cases import ALL
from benchmarks.timing import MeasureBeside

CASES = ALL


def test_sequences(case: Sided, threads: int, measure_beside: MeasureBeside) -> None:
    measure_beside(case, threads)

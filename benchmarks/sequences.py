"""Lengths, resets and checkpoints beside the other ways to do the same, all in turn.

    python -m benchmarks sequences --out DIR [--threads 1,2] [--quick]
    python -m benchmarks sequences --out DIR --only lengths,resets
    python -m benchmarks sequences --out DIR --only huge       # one call, some minutes, 10 GB

Writes DIR/sequences.jsonl and from it sequences.md; the page ends with what is aimed at, met or
missed. The cases are those of bench_sequences.py. Checkpoints have the peak memory beside, each
side's read in a process of its own. `huge` is one training step of an LSTM over 100,000 steps,
ours alone: its gates would not fit.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from benchmarks import options, peak, timing
from benchmarks.cases import INFERENCE
from benchmarks.report.place import beside
from benchmarks.report.sequences import KIND, OURS, Measured, page
from benchmarks.results import line, write
from benchmarks.sequence_cases import ALL, HUGE, Checkpoints, Sequences

SECONDS, QUICK_SECONDS = 8.0, 0.1  # of all sides' rounds of a case
FEWEST = 7
KINDS = ("lengths", "resets", "checkpoints", "huge")


def small(case: Sequences) -> Sequences:
    """A case of the same code that costs nothing."""
    changes: dict[str, Any] = {"every": 3} if isinstance(case, Checkpoints) else {}
    return replace(case, T=7, B=3, I=8, H=8, **changes)


def memory(case: Sequences, names: Sequence[str], threads: int) -> dict[str, float]:
    return {name: peak.of(case, small(case), name, threads)[0] for name in names}


def measure(case: Sequences, threads: int, seconds: float, fewest: int = FEWEST) -> Measured:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours, others = case.sides()
    calls = {OURS: ours, **{side.name: side.call for side in others}}
    with torch.inference_mode() if case.step == INFERENCE else nullcontext():
        error = timing.check_sides(ours, others)
        quickest = min(map(timing.warm, calls.values()))
        iterations = max(1, math.ceil(timing.ROUND_SECONDS / quickest))
        taken: dict[str, list[float]] = {name: [] for name in calls}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken[OURS]) < fewest:
            for name, call in calls.items():
                taken[name].append(timing.seconds_of(call, iterations))
    ms, ratios = timing.medians_and_ratios(taken, OURS)
    names = list(calls) if isinstance(case, Checkpoints) else []
    return Measured(
        f"{case.group}: {case.cell} {case.step} {case.shape}",
        threads,
        len(taken[OURS]),
        case.gflop,
        ms,
        ratios,
        error,
        [line(aim) for aim in case.aims],
        memory(case, names, threads),
    )


def one_call(case: Checkpoints, threads: int) -> Measured:
    """Ours alone, one call in a process of its own."""
    most, seconds = peak.of(case, small(case), OURS, threads)
    name = f"{case.group}: {case.cell} {case.step} {case.shape}"
    return Measured(
        name, threads, 1, case.gflop, {OURS: seconds * 1e3}, {}, {}, mebibytes={OURS: most}
    )


def main(argv: Sequence[str]) -> int:
    top = options.measuring(KIND, "Times lengths, resets and checkpoints.")
    options.add_threads(top, torch.get_num_threads())
    usual = ",".join(KINDS[:3])
    kinds = f"which of {','.join(KINDS)} (default: {usual})"
    top.add_argument("--only", default=usual, help=kinds)
    arguments = top.parse_args(argv)
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - set(KINDS):
        top.error(f"--only: expected some of {','.join(KINDS)}, got {','.join(sorted(unknown))}")
    cases, seconds, fewest = [case for case in ALL if case.group in wanted], SECONDS, FEWEST
    huge = [HUGE] if "huge" in wanted else []
    if arguments.quick:
        first = {case.group: small(case) for case in reversed(cases)}
        cases, seconds, fewest = [*first.values()][::-1], QUICK_SECONDS, 3
        huge = [replace(case, T=70, B=3, I=8, H=8, every=9) for case in huge]
    measured: list[Measured] = []
    for threads in arguments.threads:
        for case in cases:
            measured.append(measure(case, threads, seconds, fewest))
            print("\n".join(measured[-1].verdicts), file=sys.stderr)
        measured += [one_call(case, threads) for case in huge]
    path = arguments.out / f"{KIND}.jsonl"
    write(path, KIND, timing.place(), map(line, measured))
    return beside(path, page(path))

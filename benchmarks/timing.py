"""How a case is timed on the CPU: both sides in turn, after checking that both compute the same.

Rounds alternate, ours then torch.nn's, so that both meet the same clock rate and the same
neighbours, and a case's ratio is the median of the rounds' ratios. pytest-benchmark times our
rounds through its own fixture; torch.nn's lie between them, in the fixture's teardown. gpu.py
times the same cases on a GPU, where there may be no pytest-benchmark.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fusedrnn
from benchmarks.cases import INFERENCE, Call, Case, Named, Side, Sided, Subject, Tier
from benchmarks.machine import commit, cpu_name
from benchmarks.results import Line, Record, Run
from fusedrnn import ops

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

# The fixtures of conftest.py: a case, threads.
Measure = Callable[[Case, int], None]
MeasureBeside = Callable[[Sided, int], None]


@dataclass(frozen=True)
class Effort:
    """How long a case is measured."""

    seconds: float  # both sides' rounds together, where `fewest` rounds allow it
    fewest: int
    most: int = 201


EFFORTS = {Tier.QUICK: Effort(0.1, 3), Tier.DEFAULT: Effort(2.0, 7), Tier.FULL: Effort(0.5, 3)}
WARM_SECONDS, ROUND_SECONDS, PEAK_SECONDS = 0.05, 2e-3, 0.03
TOLERANCE = 1e-3


def disagreement(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Over all pairs of tensors, the largest difference relative to the largest value."""
    if len(ours) != len(theirs):
        raise AssertionError(f"{len(ours)} results, torch.nn gives {len(theirs)}")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            raise AssertionError(f"a result is {list(a.shape)}, torch.nn's is {list(b.shape)}")
        if a.numel():
            scale = b.abs().max().clamp_min(1e-6)
            error = ((a - b).abs().max() / scale).item()
            worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def agree(subject: Subject, tolerance: float = TOLERANCE) -> float:
    """Two calls of each side from the same seed: a training step's second shows its update.

    Raises:
        AssertionError: they disagree; so a wrong kernel cannot win.
    """
    worst = 0.0
    ours, theirs = subject.alike or (subject.ours, subject.theirs)
    for seed in (0, 1):
        torch.manual_seed(seed)
        results = ours()
        torch.manual_seed(seed)
        worst = max(worst, disagreement(results, theirs()))
    if worst > tolerance:
        raise AssertionError(f"results differ from torch.nn's by {worst:.1e} of the largest value")
    return worst


def seconds_of(call: Call, iterations: int) -> float:
    """Mean time of one call."""
    start = time.perf_counter()
    for _ in range(iterations):
        call()
    return (time.perf_counter() - start) / iterations


def warm(
    call: Call,
    timed: Callable[[Call, int], float] = seconds_of,
    seconds: float = WARM_SECONDS,
) -> float:
    """Calls until caches and clock rate have settled; the shortest time of a call."""
    end, shortest = time.perf_counter() + seconds, math.inf
    while True:
        shortest = min(shortest, timed(call, 1))
        if time.perf_counter() >= end:
            return shortest


@dataclass(frozen=True)
class Pace:
    """How many rounds there are, of how many calls each."""

    rounds: int
    iterations: int


def pace(ours: float, theirs: float, effort: Effort) -> Pace:
    """The pace for calls of so many seconds each."""
    iterations = max(1, math.ceil(ROUND_SECONDS / min(ours, theirs)))
    rounds = int(effort.seconds / (iterations * (ours + theirs)))
    return Pace(min(max(rounds, effort.fewest), effort.most), iterations)


def record(
    case: Named,
    data: str,
    ours: list[float],
    theirs: list[float],
    iterations: int,
    **fields: Any,
) -> Record:
    """The record of rounds timed in turn, in seconds a call."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    q1, median, q3 = statistics.quantiles(ratios, n=4, method="inclusive")
    return Record(
        group=case.group,
        cell=case.cell,
        step=case.step,
        shape=case.shape,
        data=data,
        headline=case.headline,
        ours_ms=statistics.median(ours) * 1e3,
        ours_min_ms=min(ours) * 1e3,
        torch_ms=statistics.median(theirs) * 1e3,
        torch_min_ms=min(theirs) * 1e3,
        ratio=median,
        ratio_q1=q1,
        ratio_q3=q3,
        rounds=len(ours),
        iterations=iterations,
        gflop=case.gflop,
        **fields,
    )


def note_peak(peaks: dict[str, float], threads: int) -> None:
    """Reads the FMA peak of so many threads; the largest reading counts."""
    peak = ops.fma_peak(threads, PEAK_SECONDS)
    peaks[str(threads)] = max(peak, peaks.get(str(threads), 0.0))


def in_turn(
    calls: Sequence[Call], effort: Effort, benchmark: BenchmarkFixture
) -> tuple[int, list[list[float]]] | None:
    """Calls a round, and for each side its rounds' seconds a call; the first side is ours. None
    where nothing is timed (--benchmark-disable)."""
    ours, *others = calls
    once = sorted(map(warm, calls))
    steps = pace(once[0], sum(once[1:]), effort)
    found: list[list[float]] = [[] for _ in others]

    def others_in_turn() -> None:
        for call, taken in zip(others, found, strict=True):
            taken.append(seconds_of(call, steps.iterations))

    gc.collect()
    gc.disable()
    try:
        timed: Any = benchmark  # its methods carry no types
        about = {"rounds": steps.rounds, "iterations": steps.iterations}
        timed.pedantic(ours, **about, teardown=others_in_turn)
    finally:
        gc.enable()
    if benchmark.stats is None:
        return None
    first: list[float] = benchmark.stats.stats.data
    # With several iterations the fixture calls the teardown once more.
    return steps.iterations, [first, *(taken[: len(first)] for taken in found)]


def measure(
    case: Case, threads: int, effort: Effort, benchmark: BenchmarkFixture, run: Run
) -> None:
    """Checks and times one case; appends its record to `run`, and a reading of the FMA peak."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    subject = case.build()
    with torch.inference_mode() if case.step == INFERENCE else nullcontext():
        error = agree(subject)
        note_peak(run.peak_gflops, threads)
        rounds = in_turn((subject.ours, subject.theirs), effort, benchmark)
    if rounds is None:
        return
    iterations, (ours, theirs) = rounds
    about: dict[str, Any] = {"precision": run.precision, "threads": threads, "error": error}
    found = record(case, subject.data, ours, theirs, iterations, **about)
    run.records.append(found)
    benchmark.group = case.group
    benchmark.extra_info.update(
        torch_ms=found.torch_ms, ratio=found.ratio, threads=threads, data=found.data
    )


def check_sides(ours: Call, sides: Sequence[Side]) -> dict[str, float]:
    """How far each side's results are from ours; where other results are meant, nothing is held.

    Raises:
        AssertionError: a side disagrees.
    """
    expected = ours()
    found = {
        side.name: disagreement(expected, side.check()) if side.check else 0.0 for side in sides
    }
    for name, error in found.items():
        if error > TOLERANCE:
            raise AssertionError(f"results differ from {name} by {error:.1e} of the largest value")
    return found


def measure_beside(
    case: Sided, threads: int, effort: Effort, benchmark: BenchmarkFixture, run: Run
) -> None:
    """As `measure`, beside several sides at once; appends a record for each of them."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours, sides = case.sides()
    with torch.inference_mode() if case.step == INFERENCE else nullcontext():
        errors = check_sides(ours, sides)
        note_peak(run.peak_gflops, threads)
        rounds = in_turn((ours, *(side.call for side in sides)), effort, benchmark)
    if rounds is None:
        return
    iterations, (first, *others) = rounds
    for side, taken in zip(sides, others, strict=True):
        about: dict[str, Any] = {"precision": run.precision, "threads": threads}
        about |= {"error": errors[side.name], "beside": side.name}
        found = record(case, "random", first, taken, iterations, **about)
        run.besides.append(found)
        benchmark.extra_info[side.name] = found.ratio
    benchmark.group = case.group


def place() -> Line:
    """Where and when this is measured."""
    run = new_run(Tier.DEFAULT)
    return {name: getattr(run, name) for name in ("date", "commit", "cpu", "cores", "isa", "torch")}


def new_run(tier: Tier) -> Run:
    return Run(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=commit(),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        isa=ops.cpu_isa(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        fusedrnn=fusedrnn.__version__,
        precision="fp32",
        selection=tier.name.lower(),
    )


def medians_and_ratios(
    taken: dict[str, list[float]], ours: str
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Of sides' seconds, taken in turn: each side's median in milliseconds, and the quartiles of
    every other side's time / ours in the same round."""
    ms = {name: statistics.median(found) * 1e3 for name, found in taken.items()}
    ratios = {
        name: [b / a for a, b in zip(taken[ours], found, strict=True)]
        for name, found in taken.items()
        if name != ours
    }
    return ms, {
        name: statistics.quantiles(r, n=4, method="inclusive") for name, r in ratios.items()
    }

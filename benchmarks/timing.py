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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fusedrnn
from benchmarks.cases import INFERENCE, Call, Case, Subject, Tier
from benchmarks.machine import commit, cpu_name
from benchmarks.results import Line, Record, Run
from fusedrnn import ops

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

Measure = Callable[[Case, int], None]  # the fixture of conftest.py: a case, threads


@dataclass(frozen=True)
class Effort:
    """How long a case is measured."""

    seconds: float  # both sides' rounds together, where `fewest` rounds allow it
    fewest: int
    most: int = 201


EFFORTS = {Tier.QUICK: Effort(0.1, 3), Tier.DEFAULT: Effort(2.0, 7), Tier.FULL: Effort(0.5, 3)}
WARM_SECONDS, ROUND_SECONDS, PEAK_SECONDS = 0.05, 2e-3, 0.03


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


def agree(subject: Subject, tolerance: float = 1e-3) -> float:
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
    case: Case,
    subject: Subject,
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
        data=subject.data,
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


def measure(
    case: Case, threads: int, effort: Effort, benchmark: BenchmarkFixture, run: Run
) -> None:
    """Checks and times one case; appends its record to `run`, and a reading of the FMA peak."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    subject = case.build()
    theirs: list[float] = []
    with ExitStack() as stack:
        if case.step == INFERENCE:
            stack.enter_context(torch.inference_mode())
        error = agree(subject)
        note_peak(run.peak_gflops, threads)
        steps = pace(warm(subject.ours), warm(subject.theirs), effort)
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        timed: Any = benchmark  # its methods carry no types
        timed.pedantic(
            subject.ours,
            rounds=steps.rounds,
            iterations=steps.iterations,
            teardown=lambda: theirs.append(seconds_of(subject.theirs, steps.iterations)),
        )
    if benchmark.stats is None:  # --benchmark-disable: run once, not timed
        return
    ours: list[float] = benchmark.stats.stats.data
    theirs = theirs[: len(ours)]  # with several iterations the fixture calls once more
    found = record(
        case,
        subject,
        ours,
        theirs,
        steps.iterations,
        precision=run.precision,
        threads=threads,
        error=error,
    )
    run.records.append(found)
    benchmark.group = case.group
    benchmark.extra_info.update(
        torch_ms=found.torch_ms, ratio=found.ratio, threads=threads, data=found.data
    )


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

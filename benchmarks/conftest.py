"""Options, case selection and the closing summary of ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks import options, timing
from benchmarks.cases import Tier
from benchmarks.report.summary import summary
from benchmarks.results import Run

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

RUN = pytest.StashKey[Run]()
RESULTS = Path(__file__).parent / "results" / "latest.jsonl"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedrnn")
    group.addoption("--quick", action="store_true", help="a few cases, a few rounds (a smoke test)")
    group.addoption("--full", action="store_true", help="the grid of shapes as well (an hour)")
    group.addoption(
        "--results", type=Path, default=RESULTS, help="file to write, JSON lines (%(default)s)"
    )
    group.addoption(
        "--threads",
        type=options.numbers,
        default=[torch.get_num_threads()],
        help="thread counts, each measured, as in 1,2 (default: torch's own)",
    )


def tier(config: pytest.Config) -> Tier:
    if config.getoption("full"):
        return Tier.FULL
    return Tier.QUICK if config.getoption("quick") else Tier.DEFAULT


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # our table says more; --benchmark-verbose shows its own
    config.stash[RUN] = timing.new_run(tier(config))


Timing = Callable[[Callable[..., None]], Callable[[Any, int], None]]


@pytest.fixture
def timed(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Iterator[Timing]:
    """Makes of a way to measure a call that takes a case and its threads; then saves the run."""
    before = torch.get_num_threads()
    run, effort = request.config.stash[RUN], timing.EFFORTS[tier(request.config)]
    yield lambda how: lambda case, threads: how(case, threads, effort, benchmark, run)
    torch.set_num_threads(before)
    if run.records or run.besides:  # a long run that breaks off has not been for nothing
        run.save(request.config.getoption("results"))


@pytest.fixture
def measure(timed: Timing) -> timing.Measure:
    """Times one case on so many threads."""
    return timed(timing.measure)


@pytest.fixture
def measure_beside(timed: Timing) -> timing.MeasureBeside:
    """Times one case and all its other sides."""
    return timed(timing.measure_beside)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = [case for case in metafunc.module.CASES if case.tier <= tier(metafunc.config)]
        names = [f"{c.group}-{c.cell}-{c.step}-{c.shape}".replace(" ", "_") for c in cases]
        metafunc.parametrize("case", cases, ids=names)
        metafunc.parametrize("threads", metafunc.config.getoption("threads"))


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Iterator[None]:
    yield  # whatever pytest-benchmark prints comes first: ours is the last thing on the screen
    run = config.stash[RUN]
    if not (run.records or run.besides):
        return
    path = config.getoption("results")
    run.records.sort(key=lambda record: record.data == "random")  # whole models first
    run.save(path)
    terminalreporter.section("fusedrnn and torch.nn in turn")
    for line in summary(run):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"written: {path}")

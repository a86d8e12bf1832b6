"""Cost as a workload: milliseconds an update and a batch read, against the number of units."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from examples import data
from examples.cost import model
from examples.driver import results
from examples.driver.layers import CELLS, NAMES
from examples.driver.options import positive, sized
from examples.driver.plots import Points
from examples.driver.results import Figure, Groups, Record, Runs
from examples.driver.tables import Summary
from examples.driver.workload import Chart, Claim, Group, Job, Workload

TEXT = (
    "An LSTM has four gates where an RNN has one, so its layer has four times the weights and does "
    "four times the arithmetic; a GRU three times. What that costs depends on the number of units: "
    "of few, a step is over before the work counts; of many, the arithmetic is all. Training does "
    "the work of inference and then about twice as much for the gradients. The task is the "
    "character model of The Time Machine, {batch} rows of {steps} characters an update."
)
PHASES = ("training", "inference")


class Cost(Workload):
    name = "cost"
    about = "Time RNN, GRU and LSTM in training and inference, for several numbers of units."
    cells = CELLS
    example = "cost --cell rnn lstm --hidden 128 1024 --impl fusedrnn torch"
    sizes, fixed = model.CONFIG, ("hidden",)  # of which there are several
    epochs = model.CONFIG.epochs
    unit = "tokens"
    every = model.CONFIG.epochs

    def options(self, add: Callable[..., Any]) -> None:
        usual = list(model.HIDDEN)
        add("--hidden", type=positive, nargs="+", default=usual, help="H, numbers of units")

    def configs(self, args: argparse.Namespace) -> Job:
        text = data.time_machine(args.data_dir, args.synthetic).to(args.device)
        each = argparse.Namespace(**{**vars(args), "hidden": None})
        config = sized(each, model.CONFIG, replace(model.CONFIG, epochs=3))
        return Job(args, config, text, text.source, [str(text)])

    def build(self, job: Job) -> Iterator[Group]:
        args = job.args
        for H, seed in product(args.hidden, args.seed):
            about = (seed, job.data, replace(job.config, hidden=H))
            runs = [
                model.new_run(cell, impl, *about) for cell, impl in product(args.cell, args.impl)
            ]
            yield Group(runs, job.config.epochs, f"H = {H}, seed {seed}")

    def summarise(self, record: Record) -> Summary:
        found = results.groups(record["runs"], "hidden", "cell")
        largest = max(H for H, _ in found)
        tables = []
        for phase in PHASES:
            ms = _milliseconds(record, phase)
            title = f"{phase.capitalize()}: milliseconds a batch"
            tables.append(results.times(title, ("H", "cell"), found, ".2f", ms, ms))
        training = _milliseconds(record, PHASES[0])
        return Summary(
            title="Cost: RNN, GRU and LSTM in training and inference",
            text=TEXT.format(**record["config"]),
            tables=tables,
            remarks=[*_remarks(record, found)],
            headline=results.headline(
                {(c,): by_impl for (H, c), by_impl in found.items() if largest == H},
                f"Cost, {{}} of {largest} units: ms an update",
                lambda runs: f"{training(runs):.2f}",
            ),
        )

    def claims(self, record: Record) -> list[Claim]:
        exercise = "exercise: the cost of an LSTM beside an RNN, in training and inference, by size"
        found = results.groups(record["runs"], "hidden", "cell")
        said = " ".join(_remarks(record, found))
        return [(exercise, said)] if said else []

    def draw(self, record: Record) -> list[Chart]:
        found = results.groups(record["runs"], "hidden", "cell")
        charts = []
        for phase in PHASES:
            caption = f"{phase.capitalize()}: time against the number of units; dashed: torch.nn."
            title = f"What a batch costs in {phase}, by cell and size"
            series, styles = _by_units(found, _milliseconds(record, phase))
            about = (f"-{phase}", caption, title, "milliseconds a batch", series, "H, hidden units")
            charts.append(Chart(*about, log_x=True, log_y=True, styles=styles))
        return charts


WORKLOAD = Cost()


def _milliseconds(record: Record, phase: str) -> Figure:
    """Shows milliseconds a batch: the median over the epochs but for the first, and over seeds."""
    characters: int = record["config"]["batch"] * record["config"]["steps"]

    def figure(runs: Runs) -> float:
        each: list[float] = []
        for run in runs:
            epochs = run["epochs"][1:] or run["epochs"]
            seconds = "seconds" if phase == "training" else phase
            each.append(statistics.median(epoch[seconds] / epoch.targets for epoch in epochs))
        return 1e3 * characters * statistics.median(each)

    return figure


def _by_units(found: Groups, figure: Figure) -> tuple[dict[str, Points], dict[str, str]]:
    """The figure against H, a line for each cell and implementation; styles."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    styles = {}
    for H, cell in sorted(found, key=lambda key: (CELLS.index(key[1]), key[0])):
        for impl, runs in found[H, cell].items():
            name = f"{cell.upper()}, {NAMES[impl]}"
            places, values = series.setdefault(name, ([], []))
            places.append(H)
            values.append(figure(runs))
            styles[name] = f"C{CELLS.index(cell)}" + ("--" if impl == "torch" else "-")
    return {**series}, styles


def _remarks(record: Record, found: Groups) -> Iterator[str]:
    """An LSTM's time over an RNN's, for the fewest units and the most."""
    sizes = sorted({H for H, _ in found})
    for phase, H in product(PHASES, dict.fromkeys((sizes[0], sizes[-1]))):
        if {(H, "rnn"), (H, "lstm")} <= found.keys():
            figure = _milliseconds(record, phase)
            lstm, rnn = (figure(results.ours(found[H, cell])) for cell in ("lstm", "rnn"))
            times = f"{lstm / rnn:.1f} times an RNN's time"
            yield f"{phase.capitalize()}, H = {H}: an LSTM takes {times}."

"""Sequence to sequence as a workload: what teacher forcing costs, by form, by date, and in time.

The test rows are a sample, so a difference is named beside its standard error; what another seed
would change is in it only where there are several. Where hardly a row is right, nothing was learnt
that could be compared, and that is all that is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

from examples.driver import results
from examples.driver.layers import NAMES
from examples.driver.options import sized
from examples.driver.plots import Chart
from examples.driver.results import Record, Runs
from examples.driver.tables import Claim, Summary, Table, mean_std
from examples.driver.workload import Group, Job, Run, Say, Workload
from examples.seq2seq import dates, exposure, model

TEXT = (
    'A date is given as people write it, "the fifth of march, nineteen ninety-eight". To be '
    "written is a row in ISO 8601, this date and the two days after it, 1998-03-05 1998-03-06 "
    "1998-03-07; of a month or a week, the next months or weeks. Both sides are read and written "
    "one character after the other and differ in length. One recurrent layer, the encoder, reads "
    "the spelling; its last state is all that a second one, the decoder, has to write from. "
    "Before each character the decoder is fed the one that stands before it: while it learns, the "
    "right one (teacher forcing) or the one that it wrote itself. The forcing ratio is the "
    "probability of the right one; a scheduled ratio falls from 1 to 0 in the first epochs. "
    "Teacher forcing is fast: no step waits for what the decoder writes, so all steps are one "
    "call of the layer. It has a price. Fed the right characters alone, the decoder never sees "
    "what follows a mistake of its own; it may copy the date before and count one day on instead "
    "of keeping what was read. Tested, it is fed nothing but what it wrote itself, and then it "
    "copies its mistakes. Exposure bias measures this: how much more is right when the decoder is "
    "fed the true characters than when it is fed its own. The figure of the places shows it: both "
    "lines of a training start at the same height, since up to its first mistake a decoder is fed "
    "the same either way, and part from the second date on. For that reason an exact match, a row "
    "without any mistake, does not show exposure bias. A slip shows where the bias comes from: "
    "into a row that the decoder would write without a mistake one wrong digit is put, in the "
    "first date, and fed to it as its own. A decoder that remembers what was read writes the "
    "dates that follow all the same; one that copies goes on from the wrong date. A low ratio has "
    "a price as well: a decoder that has learnt little feeds itself mostly wrong characters, so "
    "it learns slower, and after the same epochs fewer rows may be right. No date that is tested "
    "was read in training. Sizes and rates were chosen on validation pairs, which are neither "
    "trained on nor tested. Training losses are over different inputs, true or the decoder's own, "
    "and do not compare."
)


class Seq2Seq(Workload):
    name = "seq2seq"
    about = (
        "Train an encoder and a decoder to write dates as ISO 8601. "
        "The dates are generated: --data-dir is not used, --synthetic only named."
    )
    example = "seq2seq --forcing 1.0 0.0 scheduled --seed 0 1 2"
    sizes = model.CONFIG
    cells = ("gru",)
    more_cells = ("lstm",)
    epochs = model.CONFIG.epochs
    unit = "symbols"

    def options(self, add: Callable[..., Any]) -> None:
        of = f"from 0 to 1, or {model.SCHEDULED} to fall from 1 to 0"
        every = {"type": _forcing, "nargs": "+", "default": list(model.FORCINGS)}
        add("--forcing", **every, help=f"teacher forcing ratios, in turn: {of}")

    def configs(self, args: argparse.Namespace) -> Job:
        config = sized(args, model.CONFIG, model.QUICK)
        pairs = model.load(config, args.device)
        parts = ((pairs.train, "train"), (pairs.validation, "validate"), (pairs.test, "test"))
        counts = ", ".join(f"{len(rows):,} pairs to {use}" for rows, use in parts)
        return Job(args, config, pairs, dates.SOURCE, [f"seed {config.task_seed}, {counts}"])

    def build(self, job: Job) -> Iterator[Group]:
        args, config = job.args, job.config
        for seed, cell in product(args.seed, args.cell):
            runs = [  # all in turn, so that the times of the forcing ratios compare as well
                model.new_run(cell, impl, forcing, job.data, config, seed=seed)
                for forcing, impl in product(args.forcing, args.impl)
            ]
            title = f"{cell.upper()}, seed {seed}"
            yield Group(runs, config.epochs, title, f"\n{runs[0].model}")

    def ended(self, job: Job, group: Group, run: Run, say: Say) -> dict[str, Any]:
        """What is right of the test rows, by form as well, and the first row of each form."""
        assert isinstance(run.model, model.Translator)
        pairs = job.data.test_pairs
        truth, own = model.exposure(run.model, job.data.test, job.config.row)
        found = model.translations(run.model, job.data.test)
        first = {
            pair.form: [pair.spelling, pair.row, translation]
            for pair, translation in reversed(list(zip(pairs, found, strict=True)))
        }
        by_form = model.by_form(found, pairs)
        return {
            "truth": asdict(truth),
            "own": asdict(own),
            "after_slip": model.after_slip(run.model, job.data.test, job.config.row),
            "by_form": by_form,
            "examples": [first[form] for form in by_form],
        }

    def summarise(self, record: Record) -> Summary:
        config, found = record["config"], results.groups(record["runs"], "cell", "forcing")
        keys = ("model", "forcing")
        title = f"What is right of {config['test']:,} test rows after {config['epochs']} epochs "
        columns = {
            "training loss": results.score("loss", 4),
            "exact match": _shown(lambda run: run["own"]["rows"]),
            "symbols, fed the truth": _shown(lambda run: run["truth"]["symbols"]),
            "symbols, fed its own": _shown(lambda run: run["own"]["symbols"]),
            "exposure bias": _shown(exposure.bias),
            "dates after a slip": _after_slip,
        }
        seconds = f"Seconds per epoch of {config['train']:,} pairs"
        return Summary(
            title="Sequence to sequence: dates as ISO 8601",
            text=TEXT,
            tables=[
                results.scores(title + f"({results.over(record)})", keys, found, columns),
                results.times(seconds, keys, found),
                _by_place(record),
                _examples(record),
            ],
            remarks=[*exposure.remarks(record)],
            headline=results.headline(
                found, "Dates to ISO 8601, {}, forcing {}: exact match, dates after a slip", _both
            ),
        )

    def claims(self, record: Record) -> list[Claim]:
        return exposure.claims(record)

    def draw(self, record: Record) -> list[Chart]:
        cells = record["options"]["cell"]
        return [chart for cell in cells for chart in exposure.charts(record, cell)]


WORKLOAD = Seq2Seq()


def _forcing(text: str) -> str:
    if text == model.SCHEDULED:
        return text
    ratio = float(text)
    if not 0 <= ratio <= 1:
        raise argparse.ArgumentTypeError(f"must be {model.SCHEDULED} or from 0 to 1, got {text}")
    return str(ratio)


def _shown(figure: Callable[[Record], float]) -> Callable[[Runs], str]:
    return lambda runs: mean_std([figure(run) for run in runs], 4)


def _after_slip(runs: Runs) -> str:
    return _shown(exposure.recovered)(runs) if exposure.learnt(runs) else "-"


def _both(runs: Runs) -> str:
    found = mean_std([run["own"]["rows"] for run in runs], 3)
    if not exposure.learnt(runs):
        return f"{found}, nothing learnt"
    return f"{found}, {mean_std([*map(exposure.recovered, runs)], 3)}"


def _by_place(record: Record) -> Table:
    """The share of right dates at each place of the row, fed the truth and fed its own."""
    places = [str(n) for n in range(1, record["config"]["row"] + 1)]
    rows: list[tuple[str, ...]] = []
    for cell in record["options"]["cell"]:
        for forcing, runs in exposure.of_cell(record, cell).items():
            for fed, words in (("truth", "true symbols"), ("own", "its own symbols")):
                columns = zip(*(run[fed]["dates"] for run in runs), strict=True)
                shares = (mean_std(column, 3) for column in columns)
                rows.append((cell.upper(), forcing, words, *shares))
    layers = NAMES[record["options"]["impl"][0]]
    title = f"Dates right at each place of the row, {layers}"
    return Table(title, ("model", "forcing", "fed", *places), rows)


def _examples(record: Record) -> Table:
    """The first test row of every form as the first run writes it, and the form's share."""
    run = record["runs"][0]
    shares = run["by_form"].values()
    return Table(
        f"Greedy decoding: {run['cell'].upper()}, forcing {run['forcing']}, {run['impl']}",
        ("spelling", "to be written", "written", "exact match of its form"),
        [
            (spelling, iso, found, f"{share:.3f}")
            for (spelling, iso, found), share in zip(run["examples"], shares, strict=True)
        ],
    )

"""IMDB as a workload: its runs, and what the results say of layouts, cells and the goal."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any

from examples import data
from examples.data import fetch
from examples.driver import results
from examples.driver.errors import WorkloadError
from examples.driver.options import above_zero, positive, sized
from examples.driver.results import Groups, Record, Runs
from examples.driver.tables import Summary, mean_std, standard_error
from examples.driver.workload import Chart, Claim, Group, Job, Run, Say, Workload
from examples.imdb import model

GOAL = 85.0  # % of the test reviews, of the LSTM
GUESS = 50.0  # half of the reviews are positive
OTHERS = {"padded": "padded", "lengths": "with lengths"}  # layouts beside packed, in a sentence
TEXT = (
    "Is a film review positive or negative? A recurrent network reads the last {steps} words of a "
    "review one by one and judges by its last state. Word vectors and all else are learnt from "
    "{train:,} reviews alone; the score is on the {test:,} test reviews, after the last epoch. "
    "Packed, the layer skips the padding of a batch, and so it does where it is given the lengths, "
    "which only fusedrnn's layers take; padded, it computes it. "
    "Initial values and rates were chosen on a part of the training reviews held out; the test "
    "reviews had no say. A plain RNN learns at a third of the LSTM's rate. At 1e-3 and 256 units a "
    "single figure of it says nothing: from one start and the same batches two trainings that "
    "differ by rounding ended at 71.6 and 79.9 %, and packed one had not left guessing (55.5 %)."
)


class Imdb(Workload):
    name = "imdb"
    about = "Train a bidirectional LSTM and a plain RNN on the IMDB film reviews."
    cells, more_cells = ("rnn", "lstm"), ("gru",)
    example = "imdb --cell gru --layout padded --limit 3200 --follow"
    sizes = model.CONFIGS["lstm"]
    epochs = model.CONFIGS["lstm"].epochs
    unit = "reviews"
    shares = True

    def options(self, add: Callable[..., Any]) -> None:
        add("--layout", choices=model.LAYOUTS, nargs="+", default=["packed"], help="of a batch")
        add("--steps", type=positive, help="length T; 256 at full size")
        add("--limit", type=positive, help="use only the first reviews of either part")
        add("--follow", action="store_true", help="score after every epoch; a third more time")
        part = "train on four fifths of the training reviews, score on the last; to choose sizes by"
        add("--held-out", action="store_true", help=part)
        add("--vectors", type=above_zero, help="word vectors are drawn from minus to plus this")
        add("--forget-bias", type=float, help="an LSTM's, at the start")

    def configs(self, args: argparse.Namespace) -> Job:
        if (args.layout, args.impl) == ([model.OURS_ALONE], ["torch"]):
            raise WorkloadError("torch.nn's layers take no lengths: expected --impl fusedrnn")
        corpus = data.imdb(args.data_dir, args.synthetic)
        limit = args.limit or (3_000 if args.quick else None)
        quick: dict[str, Any] = {**model.QUICK}
        own = {name: getattr(args, name) for name in ("steps", "vectors", "forget_bias")}
        own = {name: value for name, value in own.items() if value is not None}
        configs = {
            cell: replace(sized(args, full, replace(full, **quick)), **own)
            for cell, full in model.CONFIGS.items()
            if cell in args.cell
        }
        T = configs[args.cell[0]].steps
        reviews = {x: model.split(corpus, T, x, limit, args.device) for x in args.layout}
        if args.held_out:
            reviews = {x: model.held_out(train) for x, (train, _) in reviews.items()}
        train, test = reviews[args.layout[0]]
        counts = {"train": len(train.y), "test": len(test.y)}
        lines = [f"{counts['train']:,} reviews to train, {counts['test']:,} to test"]
        if not args.synthetic:
            words = data.words(fetch.IMDB_WORDS, args.data_dir)
            sentiment = data.SENTIMENTS[int(train.y[0])]
            lines.append(f"first review ({sentiment}): {data.decode(corpus.values(0), words)}")
        return Job(args, configs, reviews, corpus.source, lines, {"reviews": counts})

    def build(self, job: Job) -> Iterator[Group]:
        args = job.args
        about = {"source": data.kind(job.source), "follow": args.follow}
        each = product(args.cell, job.data.items(), args.seed, args.impl)
        runs = [
            model.new_run(cell, impl, seed, layout, parts, job.config[cell], **about)
            for cell, (layout, parts), seed, impl in each
            if (impl, layout) != ("torch", model.OURS_ALONE)
        ]
        yield Group(runs, job.config[args.cell[0]].epochs)

    def ended(self, job: Job, group: Group, run: Run, say: Say) -> dict[str, Any]:
        _, test = job.data[run.fields["layout"]]
        return {"accuracy": model.evaluate(run.model, test)}

    def summarise(self, record: Record) -> Summary:
        counts, found = record["reviews"], results.groups(record["runs"], "cell", "layout")
        what, shown = "test accuracy", _accuracy
        part = record["options"]["limit"] and not record["options"]["quick"]
        if part:  # what so few reviews teach is no result, their times are
            what = f"minutes an epoch of {counts['train']:,} reviews"
            shown = _shown_minutes
        named = {(_name(record, cell), layout): v for (cell, layout), v in found.items()}
        columns = {
            "parameters": lambda runs: f"{runs[0]['parameters']:,}",
            "loss": results.score("loss", 4),
            "test accuracy": _accuracy,
        }
        title = "Training loss of the last epoch, and the test reviews after it"
        keys = ("model", "layout")
        minutes = results.times("Minutes an epoch", keys, named, figure=_minutes)
        steps = next(iter(record["config"].values()))["steps"]
        return Summary(
            f"IMDB sentiment: {' and '.join(dict.fromkeys(layout for _, layout in found))}",
            TEXT.format(steps=steps, **counts),
            [results.scores(title, keys, named, columns), minutes],
            [*_remarks(record, found)],
            results.headline(named, f"IMDB, {{}}, {{}}: {what}", shown),
        )

    def claims(self, record: Record) -> list[Claim]:
        options = record["options"]
        if options["limit"] or options.get("held_out"):
            return []
        found = results.groups(record["runs"], "cell", "layout")
        return [
            (
                f"{_name(record, cell)}, {layout}" + f": more than {GOAL:.0f} %" * (cell != "rnn"),
                _accuracy(results.ours(by_impl)),
            )
            for (cell, layout), by_impl in found.items()
        ]

    def draw(self, record: Record) -> list[Chart]:
        lines = (results.groups(record["runs"], "cell", "layout"), "{} {}")
        which = "solid fusedrnn, dashed torch.nn"
        title, caption = "IMDB sentiment", f"Training loss; {which}, one line where both agree."
        charts = [results.chart("", caption, title, "training loss", *lines, "loss")]
        if all("accuracy" in e.figures for run in record["runs"] for e in run["epochs"]):
            about = ("-accuracy", f"Test accuracy after each epoch; {which}.", title)
            charts.append(results.chart(*about, "test accuracy", *lines, "accuracy"))
        return charts


WORKLOAD = Imdb()


def _name(record: Record, cell: str) -> str:
    config = record["config"][cell]
    way = "bidirectional " if config["bidirectional"] else ""
    return f"{config['layers']}-layer {way}{cell.upper()} {config['hidden']}"


def _accuracy(runs: Runs) -> str:
    return f"{mean_std([100 * run['accuracy'] for run in runs], 2)} %"


def _percent(runs: Runs) -> float:
    return 100 * fmean(run["accuracy"] for run in runs)


def _minutes(runs: Runs) -> float:
    return results.seconds(runs) / 60


def _shown_minutes(runs: Runs) -> str:
    return f"{_minutes(runs):.2f}"


def _remarks(record: Record, groups: Groups) -> Iterator[str]:
    found: dict[str, dict[str, list[Record]]] = {}  # one layout of each cell, for what they share
    for (cell, _), by_impl in groups.items():
        found.setdefault(cell, by_impl)
    if record["data"] == data.SYNTHETIC:
        yield "The reviews are random words: the accuracies mean nothing, the times do."
    elif record["options"]["quick"] or record["options"]["limit"]:
        few = f"{record['reviews']['train']:,} reviews teach nothing about accuracy"
        yield f"{few}: the goal of {GOAL:.0f} % is for all of them at full size."
    elif "lstm" in found:
        yield from _goal(record, found)
    for (cell, layout), by_impl in groups.items():
        if {"fusedrnn", "torch"} <= by_impl.keys():
            yield _beside(f"{cell.upper()}, {layout}", by_impl)
    for cell, (layout, words) in product(found, OTHERS.items()):
        packed, other = (groups.get((cell, x), {}) for x in ("packed", layout))
        for impl in [impl for impl in packed if impl in other]:
            a, b = packed[impl], other[impl]
            yield (
                f"{cell.upper()}, {impl}: an epoch takes {_minutes(a):.2f} minutes packed and "
                f"{_minutes(b):.2f} {words}, the accuracy is {_percent(a):.1f} % and "
                f"{_percent(b):.1f} %."
            )


def _goal(record: Record, found: Mapping[str, Mapping[str, Runs]]) -> Iterator[str]:
    """How the LSTM does against the goal, a guess, and the plain RNN."""
    impl, runs = next(iter(found["lstm"].items()))
    lstm = _percent(runs)
    verdict = f"the goal of more than {GOAL:.0f} % is {'reached' if lstm > GOAL else 'missed'}"
    about = f"The {_name(record, 'lstm')} ({impl}) is right about {lstm:.1f} % of the test reviews"
    yield f"{about}; {verdict}."
    if impl in found.get("rnn", {}):
        rnn = _percent(found["rnn"][impl])
        than = "more" if lstm > rnn else "fewer"
        yield (
            f"The {_name(record, 'rnn')} is right about {rnn:.1f} %, where guessing gives "
            f"{GUESS:.0f} %; the LSTM judges {abs(lstm - rnn):.1f} points {than} of them rightly."
        )


def _beside(name: str, by_impl: Mapping[str, Runs]) -> str:
    ours, theirs = ([100 * run["accuracy"] for run in by_impl[i]] for i in ("fusedrnn", "torch"))
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return (
        f"{name}: from the same initial values and batches, the accuracies of fusedrnn and "
        f"torch.nn differ by at most {worst:.1f} points{_clear(ours, theirs)}, and fusedrnn is "
        f"{results.speedup(by_impl)} as fast."
    )


def _clear(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Whether two implementations' accuracies over seeds differ by more than seeds do."""
    if len(ours) < 2:
        return ""
    apart = abs(fmean(ours) - fmean(theirs))
    error = standard_error(ours, theirs)
    clear = "a clear difference" if apart > 2 * error else "no clear difference"
    return f" with one seed and by {apart:.1f} on average (standard error {error:.1f}: {clear})"

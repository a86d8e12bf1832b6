"""What the results of the IMDB workload say: its tables, remarks and plots, from the JSON record.

Apart from the workload, so that a results page needs the figures and neither model nor data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.workloads import plots
from benchmarks.workloads.summary import Headline, Summary, Table, mean_std, plot_path, ratio
from benchmarks.workloads.training import history, seconds_per_epoch

GOAL = 85.0  # % of the test reviews, of the LSTM
GUESS = 50.0  # half of the reviews are positive
STYLES = {"fusedrnn": "-", "torch": "--"}

Record = Mapping[str, Any]
Runs = Sequence[Record]  # one model over the seeds


def summary(record: dict[str, Any]) -> Summary:
    """The results of one command, of whatever models, layouts, seeds and implementations."""
    rows: list[tuple[str, ...]] = []
    headline: list[Headline] = []
    counts = record["reviews"]
    part = record["options"]["limit"] and not record["options"]["quick"]
    for (cell, layout), by_impl in _groups(record).items():
        minutes = {impl: _minutes(runs) for impl, runs in by_impl.items()}
        shown = {
            impl: f"{mean_std([100 * run['accuracy'] for run in runs], 2)} %"
            for impl, runs in by_impl.items()
        }
        faster = ratio(minutes.get("torch"), minutes.get("fusedrnn"))
        rows += [
            (
                _name(record, cell),
                layout,
                impl,
                f"{runs[0]['parameters']:,}",
                mean_std([run["epochs"][-1]["loss"] for run in runs], 4),
                shown[impl],
                f"{minutes[impl]:.2f}",
                faster if impl == "fusedrnn" else "",
            )
            for impl, runs in by_impl.items()
        ]
        what, figures = "test accuracy", shown
        if part:  # what so few reviews teach is no result, their times are
            what = f"minutes an epoch of {counts['train']:,} reviews"
            figures = {impl: f"{value:.2f}" for impl, value in minutes.items()}
        system = f"IMDB, {_name(record, cell)}, {layout}: {what}"
        headline.append((system, figures.get("fusedrnn", ""), figures.get("torch", ""), faster))
    text = (
        "Is a film review positive or negative? A recurrent network reads the last "
        f"{_config(record)['steps']} words of a review one by one and judges by its last state. "
        f"Word vectors and all else are learnt from {counts['train']:,} reviews alone; the score "
        f"is on the {counts['test']:,} test reviews, after the last epoch. "
        "Packed, the layer skips the padding of a batch; padded, it computes it. "
        "The initial values were chosen by small trials on some of these test reviews, so that "
        "the score may flatter a little."
    )
    head = ("model", "layout", "impl", "parameters", "loss", "test accuracy", "min/epoch", "speed")
    drawn = [("", "Training loss; solid fusedrnn, dashed torch.nn, one line where both agree.")]
    if _followed(record):
        drawn.append(("-accuracy", "Test accuracy after each epoch; solid fusedrnn, dashed torch."))
    return Summary(
        "IMDB sentiment" + (f", the first {counts['train']:,} reviews" if part else ""),
        text,
        [Table("Training loss of the last epoch, and the test reviews after it", head, rows)],
        _remarks(record),
        drawn,
        headline,
    )


def draw(record: dict[str, Any], stem: Path) -> None:
    """Draws the training loss, and the test accuracy where every epoch has it."""
    prefix = "synthetic | " if record["data"] == "synthetic" else ""
    groups = _groups(record)
    styles = {
        _label(cell, layout, impl): f"C{i}{STYLES[impl]}"
        for i, (cell, layout) in enumerate(groups)
        for impl in groups[cell, layout]
    }

    def curves(suffix: str, y: str, value: Any) -> None:
        series = {
            _label(cell, layout, impl): [
                fmean(map(value, epochs))
                for epochs in zip(*(run["epochs"] for run in runs), strict=True)
            ]
            for (cell, layout), by_impl in groups.items()
            for impl, runs in by_impl.items()
        }
        path = plot_path(stem, suffix)
        plots.curves(path, series, title=f"{prefix}IMDB sentiment", y=y, styles=styles)

    curves("", "training loss", lambda epoch: epoch["loss"])
    if _followed(record):
        curves("-accuracy", "test accuracy", lambda epoch: epoch["figures"]["accuracy"])


def _groups(record: Record) -> dict[tuple[str, str], dict[str, Runs]]:
    """The runs over all seeds, by (cell, layout) and then by implementation."""
    groups: dict[tuple[str, str], dict[str, Runs]] = {}
    for run in record["runs"]:
        by_impl = groups.setdefault((run["cell"], run["layout"]), {})
        by_impl[run["impl"]] = [*by_impl.get(run["impl"], []), run]
    return groups


def _followed(record: Record) -> bool:
    return all("accuracy" in epoch["figures"] for run in record["runs"] for epoch in run["epochs"])


def _config(record: Record) -> Any:
    return next(iter(record["configs"].values()))


def _name(record: Record, cell: str) -> str:
    config = record["configs"][cell]
    way = "bidirectional " if config["bidirectional"] else ""
    return f"{config['layers']}-layer {way}{cell.upper()} {config['hidden']}"


def _label(cell: str, layout: str, impl: str) -> str:
    return f"{cell.upper()} {layout}, {impl}"


def _percent(runs: Runs) -> float:
    return 100 * fmean(run["accuracy"] for run in runs)


def _minutes(runs: Runs) -> float:
    return fmean(seconds_per_epoch(history(run)) for run in runs) / 60


def _remarks(record: Record) -> list[str]:
    groups = _groups(record)
    found: dict[str, dict[str, Runs]] = {}  # one layout of each cell, for what layouts share
    for (cell, _), by_impl in groups.items():
        found.setdefault(cell, by_impl)
    remarks = []
    if record["data"] == "synthetic":
        remarks.append("The reviews are random words: the accuracies mean nothing, the times do.")
    elif "lstm" in found:
        remarks += _goal(record, found)
    for (cell, layout), by_impl in groups.items():
        if {"fusedrnn", "torch"} <= by_impl.keys():
            remarks.append(_beside(f"{cell.upper()}, {layout}", by_impl))
    for cell in found:
        if {(cell, "packed"), (cell, "padded")} <= groups.keys():
            remarks += [
                f"{cell.upper()}, {impl}: an epoch takes {_minutes(packed):.2f} minutes packed and "
                f"{_minutes(padded):.2f} padded, the accuracy is {_percent(packed):.1f} % and "
                f"{_percent(padded):.1f} %."
                for impl, packed in groups[cell, "packed"].items()
                for padded in [groups[cell, "padded"][impl]]
            ]
    return remarks


def _goal(record: Record, found: Mapping[str, Mapping[str, Runs]]) -> list[str]:
    """How the LSTM does against the goal, a guess, and the plain RNN."""
    impl, runs = next(iter(found["lstm"].items()))
    lstm = _percent(runs)
    options = record["options"]
    if options["quick"] or options["limit"]:
        verdict = "the goal of 85 % is for all reviews at full size"
    else:
        verdict = f"the goal of more than {GOAL:.0f} % is {'reached' if lstm > GOAL else 'missed'}"
    remarks = [
        f"The {_name(record, 'lstm')} ({impl}) is right about {lstm:.1f} % of the test reviews; "
        f"{verdict}."
    ]
    if impl in found.get("rnn", {}):
        rnn = _percent(found["rnn"][impl])
        than = "more" if lstm > rnn else "fewer"
        remarks.append(
            f"The {_name(record, 'rnn')} is right about {rnn:.1f} %, where guessing gives "
            f"{GUESS:.0f} %; the LSTM judges {abs(lstm - rnn):.1f} points {than} of them rightly."
        )
    return remarks


def _beside(name: str, by_impl: Mapping[str, Runs]) -> str:
    ours, theirs = by_impl["fusedrnn"], by_impl["torch"]
    worst = max(abs(a["accuracy"] - b["accuracy"]) * 100 for a, b in zip(ours, theirs, strict=True))
    times = _minutes(theirs) / _minutes(ours)
    return (
        f"{name}: from the same initial values and batches, the accuracies of fusedrnn and "
        f"torch.nn differ by at most {worst:.1f} points, and fusedrnn is {times:.2f}x as fast."
    )

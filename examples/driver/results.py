"""Results on disk, one record a line, and what summaries and charts compute from them.

The first line says how the runs were made; every other one is a record of the kind it names, most
of them runs. Numbers have `DIGITS` digits, which is what tables and plots show of them: where a
difference of rounding is the subject, the workload records the difference itself.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.data.fetch import replacing
from examples.driver import training
from examples.driver.layers import CELLS, NAMES
from examples.driver.plots import Chart
from examples.driver.tables import Headline, Table, mean_std, ratio
from examples.driver.training import Epoch

DIGITS = 8

Record = Mapping[str, Any]  # a file's: its header, and each kind's records as a list
Figure = Callable[[Sequence[Record]], float]
Runs = Sequence[Record]  # one model under one implementation, over the seeds
Groups = dict[tuple[Any, ...], dict[str, list[Record]]]  # by what tells models apart, then by impl


def write(path: Path, header: Record, records: Mapping[str, Iterable[Record]]) -> None:
    """Writes the file whole, or leaves what is there."""
    lines = [header, *({"kind": kind, **r} for kind, found in records.items() for r in found)]
    text = "".join(json.dumps(_rounded(line), default=str) + "\n" for line in lines)
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; ValueError where a line is no JSON, or no object."""
    record: dict[str, Any] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            found = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no JSON in line {number}: {error}") from error
        kind = found.pop("kind", None)
        if kind is None:
            record |= found
            continue
        if "epochs" in found:
            found["epochs"] = _epochs(found["epochs"])
        record.setdefault(kind, []).append(found)
    return record


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        of_epochs = bool(value) and all(isinstance(entry, Epoch) for entry in value)
        return _rounded(_columns(value)) if of_epochs else [_rounded(entry) for entry in value]
    return value


def _columns(epochs: Sequence[Epoch]) -> dict[str, Any]:
    """Each figure's values; the targets once where all epochs have as many."""
    targets = [epoch.targets for epoch in epochs]
    return {
        "loss": [epoch.loss for epoch in epochs],
        "targets": targets if len(set(targets)) > 1 else targets[0],
        "seconds": [epoch.seconds for epoch in epochs],
        **{name: [epoch.figures[name] for epoch in epochs] for name in epochs[0].figures},
    }


def _epochs(columns: Any) -> list[Epoch]:
    if not columns:
        return []
    count = len(columns["loss"])
    lists = {key: v if isinstance(v, list) else [v] * count for key, v in columns.items()}
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return [Epoch(r.pop("loss"), int(r.pop("targets")), r.pop("seconds"), r) for r in rows]


def groups(runs: Runs, *keys: str) -> Groups:
    """The runs by the values of `keys`, then by implementation: a list over seeds."""
    found: Groups = {}
    for run in runs:
        by_impl = found.setdefault(tuple(run[key] for key in keys), {})
        by_impl.setdefault(run["impl"], []).append(run)
    return found


def first_seed(record: Record, kind: str = "runs") -> list[Record]:
    """The records of the seed that was asked for first."""
    return [run for run in record[kind] if run["seed"] == record["options"]["seed"][0]]


def ours(by_impl: Mapping[str, Runs]) -> Runs:
    """fusedrnn's runs where there are any, else torch.nn's."""
    return by_impl.get("fusedrnn") or by_impl["torch"]


def word(value: Any) -> str:
    """A value of a key as a page writes it."""
    return str(value).upper() if value in CELLS else str(value)


def last(runs: Runs, figure: str) -> list[float]:
    """That figure after the last epoch, of each run."""
    return [run["epochs"][-1][figure] for run in runs]


def curve(runs: Runs, figure: str) -> list[float]:
    """That figure after each epoch, the mean over the seeds."""
    epochs = zip(*(run["epochs"] for run in runs), strict=True)
    return [statistics.fmean(epoch[figure] for epoch in of_seeds) for of_seeds in epochs]


def spread(runs: Runs, figure: str) -> list[float]:
    """That figure's standard deviation over the seeds, after each epoch."""
    epochs = zip(*(run["epochs"] for run in runs), strict=True)
    return [statistics.stdev(epoch[figure] for epoch in of_seeds) for of_seeds in epochs]


def seconds(runs: Runs) -> float:
    """Seconds per epoch: the median over seeds."""
    return statistics.median(training.seconds_per_epoch(run["epochs"]) for run in runs)


def speed(runs: Runs) -> float:
    """Targets per second: the median over seeds."""
    return statistics.median(training.per_second(run["epochs"]) for run in runs)


def speedup(by_impl: Mapping[str, Runs], time: Figure = seconds) -> str:
    """torch.nn's time over fusedrnn's; nothing where one was not trained."""
    theirs, ours = (time(by_impl[i]) if i in by_impl else None for i in ("torch", "fusedrnn"))
    return ratio(theirs, ours)


def both(by_impl: Mapping[str, Runs], show: Callable[[Runs], str]) -> tuple[str, str]:
    """What a headline shows of fusedrnn and of torch.nn; nothing of one that was not trained."""
    ours, theirs = (show(by_impl[i]) if i in by_impl else "" for i in ("fusedrnn", "torch"))
    return ours, theirs


def score(figure: str, digits: int) -> Callable[[Runs], str]:
    """Shows the figure after the last epoch: its mean and deviation over the seeds."""
    return lambda runs: mean_std(last(runs, figure), digits)


def over(record: Record) -> str:
    """What a table's figures are over."""
    seeds = len(record["options"]["seed"])
    return f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "one seed"


def headline(found: Groups, system: str, show: Callable[[Runs], str]) -> list[Headline]:
    """A row for each group: `system` is filled with its key's values, `show` gives its figure."""
    return [
        (system.format(*map(word, key)), *both(by_impl, show), speedup(by_impl))
        for key, by_impl in found.items()
    ]


def scores(
    title: str, keys: Sequence[str], found: Groups, columns: Mapping[str, Callable[[Runs], str]]
) -> Table:
    """A row for each model under each implementation, and what each column shows of its runs."""
    rows = [
        (*map(word, key), NAMES[impl], *(show(runs) for show in columns.values()))
        for key, by_impl in found.items()
        for impl, runs in by_impl.items()
    ]
    return Table(title, (*keys, "layers", *columns), rows)


def times(
    title: str,
    keys: Sequence[str],
    found: Groups,
    spec: str = ".2f",
    figure: Figure = seconds,
    time: Figure = seconds,
) -> Table:
    """What each implementation took for each group, beside each other, and the speed of both: the
    `figure` of its runs is shown as `spec` says, the speed is the ratio of their `time`. Empty is
    what an implementation has no runs of."""
    impls = list(dict.fromkeys(impl for by_impl in found.values() for impl in by_impl))
    compared = ["speed"] if {"fusedrnn", "torch"} <= {*impls} else []
    rows: list[tuple[str, ...]] = []
    for key, by_impl in found.items():
        shown = (format(figure(by_impl[i]), spec) if i in by_impl else "" for i in impls)
        rows.append((*map(word, key), *shown, *(speedup(by_impl, time) for _ in compared)))
    return Table(title, (*keys, *(NAMES[impl] for impl in impls), *compared), rows)


def charts(
    by: int,
    suffix: str,
    caption: str,
    title: str,
    y: str,
    found: Groups,
    label: str,
    figure: str,
    log_y: bool = False,
) -> list[Chart]:
    """A `chart` for each value at place `by` of the groups' keys: it ends the suffix, and fills
    `title`."""
    parts: dict[Any, Groups] = {}
    for key, by_impl in found.items():
        parts.setdefault(key[by], {})[key] = by_impl
    return [
        chart(f"{suffix}-{v}", caption, title.format(word(v)), y, part, label, figure, log_y)
        for v, part in parts.items()
    ]


def chart(
    suffix: str,
    caption: str,
    title: str,
    y: str,
    found: Groups,
    label: str,
    figure: str,
    log_y: bool = False,
) -> Chart:
    """A figure after each epoch, the mean over the seeds and its deviation as bars: a colour for
    each group, named by `label` filled with its key's values; torch.nn's dashed."""
    series, styles, errors = {}, {}, {}
    for i, (key, by_impl) in enumerate(found.items()):
        for impl, runs in by_impl.items():
            name = f"{label.format(*map(word, key))}, {impl}"
            series[name] = curve(runs, figure)
            if len(runs) > 1:
                errors[name] = spread(runs, figure)
            styles[name] = f"C{i}" + ("--" if impl == "torch" else "-")
    return Chart(suffix, caption, title, y, series, log_y=log_y, styles=styles, errors=errors)

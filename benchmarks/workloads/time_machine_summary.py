"""What Time Machine's results say: perplexity, speed, the text written, learning against memory.

Everything is computed from the JSON record.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import plots, training
from benchmarks.workloads.summary import Headline, Summary, Table, mean_std, plot_path, ratio

TEXT = (
    "The model reads a novel character by character and says after each how likely every character "
    "is to come next. Perplexity is the exponential of the mean loss: 28 for a guess among 28 "
    "symbols, 1 for certainty. With sequential sampling a batch goes on where the last one stopped "
    "and keeps the state; with random sampling every batch starts from a state of zeros. After "
    "training the model writes: it is given a few characters and always takes the most likely next."
)
TITLES = {
    "first": "the first {characters:,} characters",
    "whole": "the text with its last part held out",
}
Record = Mapping[str, Any]
Group = tuple[str, str]  # cell, sampling


def summary(record: Record) -> Summary:
    """The tables, remarks and headline rows of a record of ``time_machine.py``."""
    impls: list[str] = record["options"]["impl"]
    tables, remarks, charts = [], [], []
    headline: list[Headline] = []
    for corpus, config in record["config"].items():
        groups = _groups(record, corpus)
        title = TITLES[corpus].format(**config)
        tables.append(_perplexities(groups, config, title))
        tables.append(_speeds(groups, impls, title))
        remarks += [*_on_sampling(groups, title), *_on_memory(groups, title)]
        kind = "held-out" if config["held_out"] else "training"
        part = f"first {config['characters']:,} characters" if corpus == "first" else "whole text"
        charts.append(
            (
                f"-{corpus}",
                f"{kind.capitalize()} perplexity after each epoch, {title}, mean over seeds; "
                "dashed: torch.nn.",
            )
        )
        headline += [
            (
                f"Time Machine, {part}, {cell.upper()}, {sampling}: {kind} perplexity",
                _score(by_impl.get("fusedrnn")),
                _score(by_impl.get("torch")),
                _ratio(by_impl),
            )
            for (cell, sampling), by_impl in groups.items()
            if sampling == next(iter(groups))[1]  # the first one asked for; tables have the others
        ]
    tables.append(
        Table(
            "Text written after the prefixes, by the models of the first seed",
            ("corpus", "model", "sampling", "layers", "text"),
            [
                (run["corpus"], run["cell"].upper(), run["sampling"], run["impl"], text)
                for run in record["runs"]
                if run["seed"] == record["options"]["seed"][0]
                for text in run["generated"]
            ],
        )
    )
    return Summary(
        title="Time Machine: a language model of characters",
        text=TEXT,
        tables=tables,
        remarks=remarks,
        plots=charts,
        headline=headline,
    )


def draw(record: Record, stem: Path) -> None:
    """Draws each corpus' perplexity over epochs: on what is held out, where something is."""
    prefix = "synthetic | " if record["options"]["synthetic"] else ""
    for corpus, config in record["config"].items():
        series: dict[str, list[float]] = {}
        styles: dict[str, str] = {}
        for i, ((cell, sampling), by_impl) in enumerate(_groups(record, corpus).items()):
            for impl, runs in by_impl.items():
                name = f"{cell.upper()} {sampling}, {impl}"
                series[name] = [
                    statistics.mean(values)
                    for values in zip(*(perplexities(run) for run in runs), strict=True)
                ]
                styles[name] = f"C{i}" + ("--" if impl == "torch" else "-")
        kind = "held-out" if config["held_out"] else "training"
        plots.curves(
            plot_path(stem, f"-{corpus}"),
            series,
            title=f"{prefix}Time Machine, {TITLES[corpus].format(**config)}",
            y=f"{kind} perplexity",
            log=True,
            styles=styles,
        )


def perplexities(run: Record) -> list[float]:
    """After each epoch: on the held-out text where there is one, else on the training text."""
    return [epoch.figures.get("held_out", epoch.perplexity) for epoch in training.history(run)]


def _perplexities(
    groups: Mapping[Group, Mapping[str, Sequence[Record]]], config: Record, title: str
) -> Table:
    rows = []
    for (cell, sampling), by_impl in groups.items():
        for impl, runs in by_impl.items():
            trained = [training.history(run)[-1].perplexity for run in runs]
            row = [cell.upper(), sampling, impl, mean_std(trained, 3)]
            if config["held_out"]:
                best = min(statistics.mean(v) for v in zip(*map(perplexities, runs), strict=True))
                row += [_score(runs), f"{best:.3f}"]
            rows.append(tuple(row))
    head: tuple[str, ...] = ("model", "sampling", "layers", "training perplexity")
    if config["held_out"]:
        head += ("held-out perplexity", "lowest on the way")
    return Table(f"After {config['epochs']} epochs, {title}", head, rows)


def _speeds(
    groups: Mapping[Group, Mapping[str, Sequence[Record]]], impls: Sequence[str], title: str
) -> Table:
    compared = len(impls) > 1
    return Table(
        f"Characters trained on per second, {title}",
        ("model", "sampling", *impls, *(["fusedrnn / torch"] if compared else [])),
        [
            (
                cell.upper(),
                sampling,
                *(f"{speed(by_impl[impl]):,.0f}" for impl in impls),
                *([_ratio(by_impl)] if compared else []),
            )
            for (cell, sampling), by_impl in groups.items()
        ],
    )


def _on_sampling(groups: Mapping[Group, Mapping[str, Sequence[Record]]], title: str) -> list[str]:
    said = []
    for cell in dict.fromkeys(cell for cell, _ in groups):
        if (cell, "sequential") in groups and (cell, "random") in groups:
            kept, anew = (_mean(_first(groups[cell, s])) for s in ("sequential", "random"))
            lower = "sequential" if kept < anew else "random"
            said.append(
                f"{cell.upper()}, {title}: perplexity {kept:.3f} with sequential sampling and "
                f"{anew:.3f} with random, lower with {lower}."
            )
    return said


def _on_memory(groups: Mapping[Group, Mapping[str, Sequence[Record]]], title: str) -> list[str]:
    said = []
    for (cell, sampling), by_impl in groups.items():
        run = _first(by_impl)[0]
        epochs, values = training.history(run), perplexities(run)
        if "held_out" not in epochs[-1].figures:
            continue
        best = min(range(len(values)), key=values.__getitem__)
        said.append(
            f"{cell.upper()}, {sampling}, {title}, seed {run['seed']}: perplexity "
            f"{epochs[-1].perplexity:.3f} on what it was trained on, {values[-1]:.3f} on what it "
            + (
                "never saw, lowest after the last epoch."
                if best == len(values) - 1
                else f"never saw; the latter was lowest after epoch {best + 1} "
                f"({values[best]:.3f}) and has risen since."
            )
        )
    return said


def speed(runs: Sequence[Record]) -> float:
    """Characters per second: the median over seeds."""
    return statistics.median(training.per_second(training.history(run)) for run in runs)


def _score(runs: Sequence[Record] | None) -> str:
    return mean_std([perplexities(run)[-1] for run in runs], 3) if runs else ""


def _mean(runs: Sequence[Record]) -> float:
    return statistics.mean(perplexities(run)[-1] for run in runs)


def _first(by_impl: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    """fusedrnn's runs where there are any, else torch.nn's."""
    return by_impl.get("fusedrnn") or by_impl["torch"]


def _ratio(by_impl: Mapping[str, Sequence[Record]]) -> str:
    if len(by_impl) < 2:
        return ""
    return ratio(1 / speed(by_impl["torch"]), 1 / speed(by_impl["fusedrnn"]))


def _groups(record: Record, corpus: str) -> dict[Group, dict[str, list[Record]]]:
    """A corpus' runs by cell and sampling, then by implementation; a list over seeds."""
    found: dict[Group, dict[str, list[Record]]] = {}
    for run in record["runs"]:
        if run["corpus"] == corpus:
            by_impl = found.setdefault((run["cell"], run["sampling"]), {})
            by_impl.setdefault(run["impl"], []).append(run)
    return found

"""What sequence to sequence's record says: exact matches against forcing, by form, and the times.

Everything is computed from the JSON record. The test pairs are a sample, so a difference is named
beside its standard error; what another seed would change is in it only where there are several.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import plots, training
from benchmarks.workloads.summary import Summary, Table, mean_std, plot_path, ratio

TEXT = (
    'A date is given as people write it, "the fifth of march, nineteen ninety-eight", and is to be '
    "written as ISO 8601, 1998-03-05: one character after the other on both sides, of different "
    "lengths. One recurrent layer, the encoder, reads the spelling; its last state is all that a "
    "second one, the decoder, has to write from. While it learns, the decoder is fed the right "
    "character before (teacher forcing) or its own last one; the forcing ratio is the probability "
    "of the right one. Fed the right ones alone, it never sees what follows a mistake of its own; "
    "tested, it is fed nothing but what it wrote itself. A date counts when every character is "
    "right; none of the dates tested was trained. The rate of learning was chosen by trials on "
    "these same test dates, so that scores may flatter a little. Losses are over different inputs, "
    "forced or the decoder's own, and do not compare."
)
Record = Mapping[str, Any]
Group = tuple[str, str]  # cell, forcing


def summary(record: Record) -> Summary:
    """The tables, remarks and headline rows of a record of ``seq2seq.py``."""
    impls: list[str] = record["options"]["impl"]
    groups = _groups(record)
    seeds = record["options"]["seed"]
    over = f"{len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else "one seed"
    both = len(impls) > 1
    scores = Table(
        f"Exact match on {record['config']['test']:,} test pairs after "
        f"{record['config']['epochs']} epochs ({over})",
        ("model", "forcing", "layers", "training loss", "exact match"),
        [
            (
                cell.upper(),
                forcing,
                impl,
                mean_std([run["epochs"][-1]["loss"] for run in runs], 4),
                mean_std(_exact(runs), 4),
            )
            for (cell, forcing), by_impl in groups.items()
            for impl, runs in by_impl.items()
        ],
    )
    times = Table(
        f"Seconds per epoch of {record['config']['train']:,} pairs",
        ("model", "forcing", *impls, *(["torch / fusedrnn"] if both else [])),
        [
            (
                cell.upper(),
                forcing,
                *(f"{_seconds(by_impl[impl]):.2f}" for impl in impls),
                *([_ratio(by_impl)] if both else []),
            )
            for (cell, forcing), by_impl in groups.items()
        ],
    )
    headline = [
        (
            f"Dates to ISO 8601, {cell.upper()}, forcing {forcing}: exact match",
            mean_std(_exact(by_impl["fusedrnn"]), 3) if "fusedrnn" in by_impl else "",
            mean_std(_exact(by_impl["torch"]), 3) if "torch" in by_impl else "",
            _ratio(by_impl),
        )
        for (cell, forcing), by_impl in groups.items()
        if forcing == next(reversed(groups))[1]  # one of them; tables have the others
    ]
    return Summary(
        title="Sequence to sequence: dates as ISO 8601",
        text=TEXT,
        tables=[scores, times, _examples(record)],
        remarks=remarks(record),
        plots=[
            (
                "",
                "Exact match against the forcing ratio; dotted: torch.nn; "
                "dashed: a ratio falling from 1 to 0.",
            ),
            ("-epochs", f"Exact match on the test pairs after each epoch, {impls[0]}'s layers."),
        ],
        headline=headline,
    )


def draw(record: Record, stem: Path) -> None:
    """Draws exact matches against the forcing ratio, and over epochs."""
    prefix = "synthetic | " if record["options"]["synthetic"] else ""
    first = record["options"]["impl"][0]
    groups = _groups(record)
    against: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    over: dict[str, list[float]] = {}
    styles: dict[str, str] = {}
    colors: dict[tuple[str, str], str] = {}
    for (cell, forcing), by_impl in groups.items():
        for impl, runs in by_impl.items():
            color = colors.setdefault((cell, impl), f"C{len(colors)}")
            line = "-" if impl == "fusedrnn" else ":"  # equal ones lie on each other
            name, value = f"{cell.upper()}, {impl}", statistics.mean(_exact(runs))
            if _constant(forcing):
                places, values = against.get(name, ([], []))
                points = sorted([*zip(places, values, strict=True), (float(forcing), value)])
                against[name] = [p for p, _ in points], [v for _, v in points]
                styles[name] = f"{color}{line}"
            else:
                against[f"{name}, {forcing}"] = (0.0, 1.0), (value, value)
                styles[f"{name}, {forcing}"] = f"{color}{'--' if impl == 'fusedrnn' else '-.'}"
        name = f"{cell.upper()}, forcing {forcing}"
        histories = [run["epochs"] for run in by_impl[first]]
        over[name] = [
            statistics.mean(epoch["figures"]["exact"] for epoch in epochs)
            for epochs in zip(*histories, strict=True)
        ]
        color = f"C{record['options']['forcing'].index(forcing)}"
        styles[name] = color + ("-" if cell == record["options"]["cell"][0] else "--")
    title = f"{prefix}Dates to ISO 8601"
    plots.lines(
        plot_path(stem),
        against,
        title=f"{title}, after {record['config']['epochs']} epochs",
        x="teacher forcing ratio",
        y="exact match",
        styles=styles,
    )
    plots.curves(
        plot_path(stem, "-epochs"), over, title=f"{title}, {first}", y="exact match", styles=styles
    )


def remarks(record: Record) -> list[str]:
    """What the figures say on forcing, forms and calls, of the first implementation."""
    impl = record["options"]["impl"][0]
    found = {group: by_impl[impl] for group, by_impl in _groups(record).items()}
    said = []
    for cell in record["options"]["cell"]:
        of_cell = {forcing: runs for (c, forcing), runs in found.items() if c == cell}
        said += _forcing_remarks(cell.upper(), of_cell, record["config"]["test"])
        shares = {
            form: statistics.mean(run["by_form"][form] for runs in of_cell.values() for run in runs)
            for form in next(iter(of_cell.values()))[0]["by_form"]
        }
        hardest = min(shares, key=shares.__getitem__)
        said.append(
            f'{cell.upper()}: the hardest form is "{hardest}", {shares[hardest]:.3f} exact '
            "over all ratios."
        )
    return said


def _forcing_remarks(cell: str, of_cell: Mapping[str, Sequence[Record]], n: int) -> list[str]:
    """Every other forcing beside full forcing, in exact match and in time."""
    if "1.0" not in of_cell:
        return []
    full = of_cell["1.0"]
    said = []
    for forcing, runs in of_cell.items():
        if forcing == "1.0":
            continue
        before, after = statistics.mean(_exact(full)), statistics.mean(_exact(runs))
        error = math.hypot(_error(_exact(full), n), _error(_exact(runs), n))
        clear = "" if abs(after - before) > 2 * error else ", no clear difference"
        said.append(
            f"{cell}, forcing 1.0 to {forcing}: exact match {before:.4f} to {after:.4f} "
            f"({after - before:+.4f}, standard error {error:.4f}{clear}); "
            f"an epoch takes {_seconds(runs) / _seconds(full):.2f} times as long."
        )
    return said


def _error(shares: Sequence[float], n: int) -> float:
    """The standard error of their mean: that of n test pairs, or of the seeds if it is larger."""
    p = statistics.mean(shares)
    sampled = math.sqrt(p * (1 - p) / n)
    seeded = statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
    return max(sampled, seeded)


def _examples(record: Record) -> Table:
    """The first test pair of every form as the first run translates it, and the form's share."""
    run = record["runs"][0]
    shares = run["by_form"].values()
    return Table(
        f"Greedy decoding: {run['cell'].upper()}, forcing {run['forcing']}, {run['impl']}",
        ("spelling", "ISO 8601", "decoded", "exact match of its form"),
        [
            (spelling, iso, found, f"{share:.3f}")
            for (spelling, iso, found), share in zip(run["examples"], shares, strict=True)
        ],
    )


def _constant(forcing: str) -> bool:
    return forcing[0].isdigit()


def _exact(runs: Sequence[Record]) -> list[float]:
    """Exact matches after the last epoch, of each run."""
    return [run["epochs"][-1]["figures"]["exact"] for run in runs]


def _seconds(runs: Sequence[Record]) -> float:
    """Seconds per epoch: the median over seeds."""
    return statistics.median(training.seconds_per_epoch(training.history(run)) for run in runs)


def _ratio(by_impl: Mapping[str, Sequence[Record]]) -> str:
    if len(by_impl) < 2:
        return ""
    return ratio(_seconds(by_impl["torch"]), _seconds(by_impl["fusedrnn"]))


def _groups(record: Record) -> dict[Group, dict[str, list[Record]]]:
    """The runs by cell and forcing, then by implementation; a list over seeds."""
    found: dict[Group, dict[str, list[Record]]] = {}
    for cell in record["options"]["cell"]:
        for forcing in record["options"]["forcing"]:
            by_impl = found.setdefault((cell, forcing), {})
            for run in record["runs"]:
                if (run["cell"], run["forcing"]) == (cell, forcing):
                    by_impl.setdefault(run["impl"], []).append(run)
    return found

"""What the written-out cells' JSON record says: same losses, and how much time each form takes.

A function of the record alone: showing results again trains nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.workloads import plots, training
from benchmarks.workloads.summary import Headline, Summary, Table, mean_std, plot_path, ratio
from benchmarks.workloads.written_out import GATES

SCRATCH = "scratch"  # stands where the others have their implementation
NAMES = {SCRATCH: "written out", "fusedrnn": "fusedrnn", "torch": "torch.nn"}
ROUNDING = 1e-9  # float64 losses further apart than this share of them are not rounding's
NEAR = 0.01  # share of a loss within which two are called near

Record = Mapping[str, Any]
Key = tuple[str, str]  # cell, implementation

TEXT = """\
A recurrent layer can be written in a few lines of torch: every gate has its own weight matrices and
bias, and a Python loop takes one step after the other. Here these lines learn to predict the next
character of The Time Machine ({hidden} units, {batch} rows of {steps} characters an update), and
beside them a model whose one layer has been loaded with the same weights. Both compute the same,
so their losses agree; but each step of the loop starts a handful of small operations for every
gate, forward and again backward, while the layer does all steps in one call."""


def cells(record: Record) -> list[str]:
    return list(dict.fromkeys(entry["cell"] for entry in record["compared"]))


def layers(record: Record) -> list[str]:
    """The implementations beside the written-out cell."""
    found = dict.fromkeys(run["impl"] for run in record["runs"])
    return [impl for impl in found if impl != SCRATCH]


def seconds(record: Record) -> dict[Key, float]:
    """Seconds per epoch, the median over the seeds."""
    return {
        key: statistics.median(training.seconds_per_epoch(training.history(run)) for run in runs)
        for key, runs in _by_key(record).items()
    }


def perplexities(record: Record) -> dict[Key, list[float]]:
    """Of the last epoch, seed by seed."""
    return {
        key: [training.history(run)[-1].perplexity for run in runs]
        for key, runs in _by_key(record).items()
    }


def _by_key(record: Record) -> dict[Key, list[Record]]:
    found: dict[Key, list[Record]] = {}
    for run in record["runs"]:
        found.setdefault((run["cell"], run["impl"]), []).append(run)
    return found


def differences(entry: Record, dtype: str, impl: str) -> list[float]:
    """How far each of the first losses is from the written-out cell's, as a share of it."""
    losses = entry["losses"][dtype]
    return [abs(a - b) / abs(b) for a, b in zip(losses[impl], losses[SCRATCH], strict=True)]


def largest(record: Record, cell: str, dtype: str, impl: str) -> float:
    """The largest of the differences, over all seeds."""
    entries = [entry for entry in record["compared"] if entry["cell"] == cell]
    return max(max(differences(entry, dtype, impl)) for entry in entries)


def drift(run: Record, scratch: Record) -> list[float]:
    """How far a layer's losses per epoch have ever been from the written-out cell's, as a share of
    it: after each epoch the largest so far."""
    shares = (
        abs(a.loss - b.loss) / abs(b.loss)
        for a, b in zip(training.history(run), training.history(scratch), strict=True)
    )
    return list(accumulate(shares, max))


def epochs_together(record: Record, cell: str, impl: str) -> int:
    """The epochs before the first whose loss is not near the written-out cell's, over all seeds."""
    runs = _by_key(record)
    pairs = zip(runs[cell, impl], runs[cell, SCRATCH], strict=True)
    return min(sum(share <= NEAR for share in drift(*pair)) for pair in pairs)


def summary(record: Record) -> Summary:
    """Tables, remarks and plots of one JSON record."""
    return Summary(
        title="From scratch: the cells written out, beside layers of the same weights",
        text=TEXT.format(**record["config"]).replace("\n", " "),
        tables=[_times(record), _losses(record), _perplexity(record), _tensors(record)],
        remarks=_remarks(record),
        plots=[
            ("", "Perplexity while training; lines that cannot be told apart lie on each other."),
            (
                "-drift",
                "How far the layers' losses have been from the written-out cell's: rounding, grown "
                "by every update.",
            ),
        ],
        headline=_headline(record),
    )


def _times(record: Record) -> Table:
    times, impls = seconds(record), layers(record)
    return Table(
        "Seconds per epoch, trained in turn",
        (
            "cell",
            NAMES[SCRATCH],
            *(NAMES[impl] for impl in impls),
            *(f"written out / {NAMES[impl]}" for impl in impls),
        ),
        [
            (
                cell.upper(),
                f"{times[cell, SCRATCH]:.3f}",
                *(f"{times[cell, impl]:.3f}" for impl in impls),
                *(ratio(times[cell, SCRATCH], times[cell, impl]) for impl in impls),
            )
            for cell in cells(record)
        ],
    )


def _losses(record: Record) -> Table:
    impls = layers(record)
    rows = []
    for cell in cells(record):
        first = next(entry for entry in record["compared"] if entry["cell"] == cell)
        for dtype, losses in first["losses"].items():
            own = losses[SCRATCH]
            far = (_share(largest(record, cell, dtype, impl)) for impl in impls)
            rows.append((cell.upper(), dtype, f"{own[0]:.6f}", f"{own[-1]:.6f}", *far))
    return Table(
        f"Losses of the first {_count(record)} updates, and how far the layers' are from them",
        ("cell", "dtype", "first", "last", *(NAMES[impl] for impl in impls)),
        rows,
    )


def _share(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _count(record: Record) -> int:
    return len(record["compared"][0]["losses"]["float32"][SCRATCH])


def _perplexity(record: Record) -> Table:
    found, impls = perplexities(record), [SCRATCH, *layers(record)]
    return Table(
        f"Perplexity after {record['config']['epochs']} epochs",
        ("cell", *(NAMES[impl] for impl in impls)),
        [
            (cell.upper(), *(mean_std(found[cell, impl], 4) for impl in impls))
            for cell in cells(record)
        ],
    )


def _tensors(record: Record) -> Table:
    """What each tensor of the written-out cell is of the layer."""
    H, B = record["config"]["hidden"], record["config"]["batch"]
    rows: list[tuple[str, ...]] = []
    for entry in record["compared"]:
        cell, tensors = entry["cell"], entry["tensors"]
        if entry["seed"] != record["compared"][0]["seed"]:
            continue
        for i, gate in enumerate(GATES[cell]):
            names = (f"W_x{gate}", f"W_h{gate}", f"b_{gate}")
            place = f"rows {i * H} to {(i + 1) * H - 1} of weight_ih, weight_hh, bias_ih"
            rows.append((cell.upper(), _shapes(names, tensors), place))
        rows.append((cell.upper(), _shapes(("W_hq", "b_q"), tensors), "weight, bias of linear"))
        states = {"H": "h_0", "C": "c_0"} if cell == "lstm" else {"H": "h_0"}
        shapes = _shapes(tuple(states), {name: [B, H] for name in states})
        rows.append((cell.upper(), f"{shapes}: not trained", ", ".join(states.values())))
        total = f"{len(tensors) + len(states)} tensors, {len(tensors)} of them trained"
        rows.append((cell.upper(), total, "matrices transposed; bias_hh stays zero"))
    return Table(
        "The tensors, and where the layer has them", ("cell", "written out", "layer"), rows
    )


def _shapes(names: tuple[str, ...], shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} {shapes[name]}" for name in names)


def _remarks(record: Record) -> list[str]:
    times, impls = seconds(record), layers(record)
    remarks = []
    for cell in cells(record):
        factors = (
            f"{ratio(times[cell, SCRATCH], times[cell, impl])} the time of {NAMES[impl]}'s layer"
            for impl in impls
        )
        remarks.append(f"{cell.upper()}, written out: an epoch takes {' and '.join(factors)}.")
    single, double = (
        max(largest(record, cell, dtype, impl) for cell in cells(record) for impl in impls)
        for dtype in ("float32", "float64")
    )
    verdict = (
        "rounding, not another formula"
        if double < ROUNDING
        else "more than rounding: the two do not compute the same"
    )
    remarks.append(
        f"Over the first {_count(record)} updates, losses of equal weights are at most "
        f"{_share(single)} of their value apart in float32 and {_share(double)} in float64: "
        f"{verdict}."
    )
    epochs = record["config"]["epochs"]
    together = min(epochs_together(record, cell, impl) for cell in cells(record) for impl in impls)
    remarks.append(
        f"Trained on in float32, their losses per epoch stay within {NEAR:.0%} of each other "
        + (f"for all {epochs} epochs." if together == epochs else f"for {together} epochs.")
    )
    return remarks


def _headline(record: Record) -> list[Headline]:
    times, found, impls = seconds(record), perplexities(record), layers(record)
    rows: list[Headline] = []
    for cell in cells(record):
        own = mean_std(found[cell, SCRATCH], 2)
        system = f"From scratch, {cell.upper()}: written out, perplexity {own}"
        if "fusedrnn" in impls:
            system += f", {ratio(times[cell, SCRATCH], times[cell, 'fusedrnn'])} fusedrnn's time"
        ours, theirs = (
            f"perplexity {mean_std(found[cell, impl], 2)}" if impl in impls else ""
            for impl in ("fusedrnn", "torch")
        )
        rows.append(
            (
                system,
                ours,
                theirs,
                ratio(times.get((cell, "torch")), times.get((cell, "fusedrnn"))),
            )
        )
    return rows


def draw(record: Record, stem: Path) -> None:
    """Draws both plots of a JSON record, of its first seed."""
    first = {key: runs[0] for key, runs in _by_key(record).items()}
    impls = layers(record)
    prefix = "synthetic | " * bool(record["options"]["synthetic"])
    curves, drifts, styles = {}, {}, {}
    for (cell, impl), run in first.items():
        name = f"{cell.upper()} {NAMES[impl]}"
        curves[name] = [epoch.perplexity for epoch in training.history(run)]
        if impl != SCRATCH:
            drifts[name] = drift(run, first[cell, SCRATCH])
        line = "-" if impl == impls[0] else "--" if impl == SCRATCH else ":"
        styles[name] = f"C{cells(record).index(cell)}{line}"
    plots.curves(
        plot_path(stem),
        curves,
        title=f"{prefix}Time Machine, written out and as layers",
        y="perplexity",
        log=True,
        styles=styles,
    )
    plots.curves(
        plot_path(stem, "-drift"),
        drifts,
        title=f"{prefix}losses per epoch, against the written-out cell's",
        y="largest relative difference so far",
        log=any(values[-1] for values in drifts.values()),
        styles=styles,
    )

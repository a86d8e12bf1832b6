"""What Reuters' results say: scores over seeds, where the parameters are, length and cell compared.

Everything is computed from the JSON record; the remarks state a difference only where it exceeds
the spread between seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import plots, training
from benchmarks.workloads.summary import Summary, Table, mean_std, plot_path, ratio

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
TEXT = (
    "A newswire of 1987 is to be given one of 46 topics. Its last T words are embedded as vectors, "
    "a recurrent network of two layers reads them one after the other, and a linear layer turns "
    "the state after the last word into one figure per topic, whose softmax is the answer. RMSE is "
    "taken between these probabilities and the right answer (1 for the topic, 0 elsewhere)."
)
CLEAR = 3  # standard errors: of few seeds, two come by chance (Student's t of 3 + 3: 2.8 at 5 %)
Record = Mapping[str, Any]
Group = tuple[str, int]  # cell, T


def derivation(cell: str, config: Mapping[str, Any]) -> Table:
    """Where the parameters of a model are, from its sizes alone, layer by layer."""
    V, E, H, C = (config[size] for size in ("vocabulary", "embedding", "hidden", "topics"))
    gates = GATES[cell]
    shapes: list[tuple[str, str, tuple[int, ...]]] = [("embedding.weight", "V x E", (V, E))]
    rows = f"{gates}H" if gates > 1 else "H"
    for layer in range(config["layers"]):
        inputs, size = ("H", H) if layer else ("E", E)
        shapes += [
            (f"rnn.weight_ih_l{layer}", f"{rows} x {inputs}", (gates * H, size)),
            (f"rnn.weight_hh_l{layer}", f"{rows} x H", (gates * H, H)),
            (f"rnn.bias_ih_l{layer}", rows, (gates * H,)),
            (f"rnn.bias_hh_l{layer}", rows, (gates * H,)),
        ]
    shapes += [("linear.weight", "C x H", (C, H)), ("linear.bias", "C", (C,))]
    entries = [
        (name, symbols, " x ".join(f"{size:,}" for size in shape), f"{math.prod(shape):,}")
        for name, symbols, shape in shapes
    ]
    total = sum(math.prod(shape) for _, _, shape in shapes)
    return Table(
        f"{cell.upper()}: parameters (V words, E embedding, H hidden, C topics)",
        ("parameter", "shape", "sizes", "values"),
        [*entries, ("total", "", "", f"{total:,}")],
    )


def summary(record: Record) -> Summary:
    """The tables, remarks and headline rows of a record of ``reuters.py``."""
    impls: list[str] = record["options"]["impl"]
    groups = _groups(record)
    scores = [
        (
            cell.upper(),
            str(T),
            impl,
            mean_std([run["epochs"][-1]["loss"] for run in runs], 4),
            *(mean_std(final(runs, figure), 4) for figure in ("test_loss", "rmse", "accuracy")),
        )
        for (cell, T), by_impl in groups.items()
        for impl, runs in by_impl.items()
    ]
    seeds = record["options"]["seed"]
    over = f"{len(seeds)} seeds, mean ± standard deviation" if len(seeds) > 1 else "one seed"
    tables = [
        Table(
            f"After {record['config']['epochs']} epochs ({over})",
            ("model", "T", "layers", "training loss", "test loss", "RMSE", "accuracy"),
            scores,
        ),
        Table(
            f"Seconds per epoch of {record['rows']['train']:,} newswires",
            ("model", "T", *impls, *(["torch / fusedrnn"] if len(impls) > 1 else [])),
            [
                (
                    cell.upper(),
                    str(T),
                    *(f"{seconds(by_impl[impl]):.2f}" for impl in impls),
                    *([_ratio(by_impl)] if len(impls) > 1 else []),
                )
                for (cell, T), by_impl in groups.items()
            ],
        ),
        *(derivation(cell, record["config"]) for cell in dict.fromkeys(c for c, _ in groups)),
    ]
    headline = [
        (
            f"Reuters, {cell.upper()}, T = {T}: accuracy",
            mean_std(final(by_impl["fusedrnn"], "accuracy"), 3) if "fusedrnn" in by_impl else "",
            mean_std(final(by_impl["torch"], "accuracy"), 3) if "torch" in by_impl else "",
            _ratio(by_impl),
        )
        for (cell, T), by_impl in groups.items()
    ]
    return Summary(
        title="Reuters newswires: topics by RNN and LSTM",
        text=TEXT,
        tables=tables,
        remarks=remarks(record),
        plots=[
            ("-loss", "Training loss after each epoch, mean over seeds; dashed: torch.nn."),
            ("-accuracy", "Accuracy on the test rows after each epoch; dashed: torch.nn."),
        ],
        headline=headline,
    )


def draw(record: Record, stem: Path) -> None:
    """Draws training loss and test accuracy over epochs."""
    prefix = "synthetic | " if record["options"]["synthetic"] else ""
    loss: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    styles: dict[str, str] = {}
    for i, ((cell, T), by_impl) in enumerate(_groups(record).items()):
        for impl, runs in by_impl.items():
            name = f"{cell.upper()} T={T}, {impl}"
            epochs = list(zip(*(training.history(run) for run in runs), strict=True))
            loss[name] = [statistics.mean(e.loss for e in epoch) for epoch in epochs]
            accuracy[name] = [
                statistics.mean(e.figures["accuracy"] for e in epoch) for epoch in epochs
            ]
            styles[name] = f"C{i}" + ("--" if impl == "torch" else "-")
    for suffix, series, y in (
        ("-loss", loss, "training loss"),
        ("-accuracy", accuracy, "test accuracy"),
    ):
        plots.curves(plot_path(stem, suffix), series, title=f"{prefix}Reuters", y=y, styles=styles)


def remarks(record: Record) -> list[str]:
    """What the figures say on length, cell and chance; of fusedrnn's models where there are any."""
    impl = "fusedrnn" if "fusedrnn" in record["options"]["impl"] else "torch"
    found = {group: final(by_impl[impl], "accuracy") for group, by_impl in _groups(record).items()}
    cells = list(dict.fromkeys(cell for cell, _ in found))
    lengths = sorted({T for _, T in found})
    said = [f"Always answering the most frequent topic scores {record['majority']:.3f}."]
    if len(lengths) > 1:
        for cell in cells:
            short, long = found[cell, lengths[0]], found[cell, lengths[-1]]
            said.append(
                f"{cell.upper()}, from T = {lengths[0]} to {lengths[-1]}: accuracy "
                f"{statistics.mean(short):.3f} to {statistics.mean(long):.3f}, "
                f"{verdict(short, long)}."
            )
    if "rnn" in cells and "lstm" in cells:
        said += [
            f"T = {T}, from RNN to LSTM: accuracy {statistics.mean(found['rnn', T]):.3f} to "
            f"{statistics.mean(found['lstm', T]):.3f}, "
            f"{verdict(found['rnn', T], found['lstm', T])}."
            for T in lengths
        ]
    return said


def verdict(before: Sequence[float], after: Sequence[float]) -> str:
    """How two sets of scores over seeds differ: clearly only beyond `CLEAR` standard errors."""
    change = statistics.mean(after) - statistics.mean(before)
    if min(len(before), len(after)) < 2:
        return f"a change of {change:+.3f} from one seed, which says little"
    error = math.sqrt(
        statistics.variance(before) / len(before) + statistics.variance(after) / len(after)
    )
    if abs(change) <= CLEAR * error:
        return f"no clear change ({change:+.3f}, standard error {error:.3f})"
    return f"clearly {'better' if change > 0 else 'worse'} ({change:+.3f} ± {error:.3f})"


def final(runs: Sequence[Record], figure: str) -> list[float]:
    """That figure after the last epoch, of each run."""
    return [run["epochs"][-1]["figures"][figure] for run in runs]


def seconds(runs: Sequence[Record]) -> float:
    """Seconds per epoch: the median over seeds."""
    return statistics.median(training.seconds_per_epoch(training.history(run)) for run in runs)


def _ratio(by_impl: Mapping[str, Sequence[Record]]) -> str:
    if len(by_impl) < 2:
        return ""
    return ratio(seconds(by_impl["torch"]), seconds(by_impl["fusedrnn"]))


def _groups(record: Record) -> dict[Group, dict[str, list[Record]]]:
    """The runs by cell and length, then by implementation; a list over seeds."""
    found: dict[Group, dict[str, list[Record]]] = {}
    for run in record["runs"]:
        by_impl = found.setdefault((run["cell"], run["T"]), {})
        by_impl.setdefault(run["impl"], []).append(run)
    return found

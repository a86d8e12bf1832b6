"""Reuters as a workload: scores over seeds, where the parameters are, length and cell compared.

The remarks state a difference only where it exceeds the spread between seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from examples import data
from examples.data import fetch
from examples.driver import results
from examples.driver.options import positive, sized
from examples.driver.plots import Points
from examples.driver.results import Groups, Record, Runs
from examples.driver.tables import Summary, Table, standard_error
from examples.driver.workload import Chart, Claim, Group, Job, Workload
from examples.reuters import model

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
TEXT = (
    "A newswire of 1987 is to be given one of 46 topics. Its last T words are embedded as vectors, "
    "a recurrent network of two layers reads them one after the other, and a linear layer turns "
    "the state after the last word into one figure per topic, whose softmax is the answer. RMSE is "
    "taken between these probabilities and the right answer (1 for the topic, 0 elsewhere)."
)
SHOWN = {"training loss": "loss", "test loss": "test_loss", "RMSE": "rmse", "accuracy": "accuracy"}
SHORT = {figure: name for name, figure in SHOWN.items()}
CLEAR = 3  # standard errors: of few seeds, two come by chance (Student's t of 3 + 3: 2.8 at 5 %)


class Reuters(Workload):
    name = "reuters"
    about = "Train RNN and LSTM on the Reuters newswires."
    cells, more_cells = model.CELLS, ("gru",)
    example = "reuters --cell lstm gru --steps 100 --seed 0 1 2"
    sizes = model.CONFIG
    epochs = model.CONFIG.epochs
    unit = "newswires"
    shares = True

    def options(self, add: Callable[..., Any]) -> None:
        add("--steps", type=positive, nargs="+", default=list(model.STEPS), help="lengths T")
        add("--limit", type=positive, help="use only the first rows, for a quick look")

    def configs(self, args: argparse.Namespace) -> Job:
        config = sized(args, model.CONFIG, replace(model.CONFIG, epochs=2))
        limit = args.limit or (512 if args.quick else None)
        corpus = data.reuters(args.data_dir, args.synthetic)
        splits = {T: model.split(corpus, T, limit, args.device) for T in args.steps}
        part = f", only the first {limit} of each used" if limit else ""
        tested = len(corpus.labels) - corpus.n_train
        lines = [f"{corpus.n_train} newswires to train, {tested} to test{part}"]
        if not args.synthetic:
            first = data.decode(corpus.values(0), data.words(fetch.REUTERS_WORDS, args.data_dir))
            topic = data.TOPICS[corpus.labels[corpus.order[0]]]
            lines.append(f"first newswire ({topic}): {first}")
        rows = next(iter(splits.values()))
        facts = {
            "rows": {"train": len(rows.x_train), "test": len(rows.x_test)},
            "majority": model.majority(rows),
        }
        return Job(args, config, splits, corpus.source, lines, facts)

    def build(self, job: Job) -> Iterator[Group]:
        args, config = job.args, job.config
        for cell, T, seed in product(args.cell, args.steps, args.seed):
            rows = job.data[T]
            runs = [model.new_run(cell, impl, rows, config, seed=seed) for impl in args.impl]
            yield Group(runs, config.epochs, f"{cell.upper()}, T={T}, seed {seed}")

    def summarise(self, record: Record) -> Summary:
        found = results.groups(record["runs"], "cell", "T")
        seconds = f"Seconds per epoch of {record['rows']['train']:,} newswires"
        after = f"After {record['config']['epochs']} epochs ({results.over(record)})"
        columns = {name: results.score(figure, 4) for name, figure in SHOWN.items()}
        keys = ("model", "T")
        cells = dict.fromkeys(cell for cell, _ in found)
        return Summary(
            title="Reuters newswires: topics by RNN and LSTM",
            text=TEXT,
            tables=[
                results.scores(after, keys, found, columns),
                results.times(seconds, keys, found),
                *(derivation(cell, record["config"]) for cell in cells),
            ],
            remarks=[*remarks(record, found)],
            headline=results.headline(
                found, "Reuters, {}, T = {}: accuracy", results.score("accuracy", 3)
            ),
        )

    def claims(self, record: Record) -> list[Claim]:
        found = results.groups(record["runs"], "cell", "T")
        config = record["config"]
        rows = []
        for cell in dict.fromkeys(cell for cell, _ in found):
            total = derivation(cell, config).rows[-1][-1]
            count = next(runs for (c, _), by in found.items() for runs in by.values() if c == cell)
            formula = f"{GATES[cell]} (W x + W_h h + b + b) a layer"
            said = f"{total} by formula, {count[0]['parameters']:,} in the model"
            rows.append((f"parameters of the {cell.upper()} model, {formula}", said))
            for figure, digits in (("rmse", 4), ("accuracy", 3)):
                show = results.score(figure, digits)
                by_length = (
                    f"{show(results.ours(by_impl))} (T = {T})"
                    for (c, T), by_impl in found.items()
                    if c == cell
                )
                rows.append((f"{SHORT[figure]} of the {cell.upper()} by T", ", ".join(by_length)))
        return rows

    def draw(self, record: Record) -> list[Chart]:
        found = results.groups(record["runs"], "cell", "T")
        loss = "Training loss after each epoch, mean and deviation over seeds; dashed: torch.nn."
        accuracy = "Accuracy on the test rows after each epoch, likewise."
        lines = (found, "{} T={}")
        fit, right = (
            "Reuters, {}: how well it fits, by T",
            "Reuters, {}: how often it is right, by T",
        )
        return [
            *results.charts(0, "-loss", loss, fit, "training loss", *lines, "loss"),
            *results.charts(0, "-accuracy", accuracy, right, "test accuracy", *lines, "accuracy"),
            *_by_length(found),
        ]


WORKLOAD = Reuters()


def _by_length(found: Groups) -> list[Chart]:
    """RMSE after the last epoch against T; nothing where there are not two lengths."""
    by_name: dict[str, list[tuple[float, Runs]]] = {}
    styles = {}
    for (cell, T), by_impl in found.items():
        for impl, runs in by_impl.items():
            name = f"{cell.upper()}, {impl}"
            by_name.setdefault(name, []).append((T, runs))
            color = list(GATES).index(cell)
            styles[name] = f"C{color}" + ("--" if impl == "torch" else "-")
    series: dict[str, Points] = {}
    errors = {}
    for name, places in by_name.items():
        values = [results.last(runs, "rmse") for _, runs in sorted(places, key=lambda p: p[0])]
        series[name] = sorted(T for T, _ in places), [statistics.mean(v) for v in values]
        if min(map(len, values)) > 1:
            errors[name] = [statistics.stdev(v) for v in values]
    if len({T for _, T in found}) < 2:
        return []
    caption = "RMSE on the test rows after the last epoch; bars: deviation over seeds."
    title, y = "Reuters: more words, more or less error", "RMSE of the 46 probabilities"
    about = ("-rmse", caption, title, y, series, "T, words read")
    return [Chart(*about, styles=styles, errors=errors)]


def derivation(cell: str, config: Mapping[str, Any]) -> Table:
    """Where the parameters of a model are, from its sizes alone, layer by layer."""
    names = {"V": "vocabulary", "E": "embedding", "H": "hidden", "C": "topics"}
    sizes: dict[str, int] = {symbol: config[name] for symbol, name in names.items()}
    gates = f"{GATES[cell]}H" if GATES[cell] > 1 else "H"
    sizes[gates] = GATES[cell] * sizes["H"]
    shapes = [("embedding.weight", "V x E")]
    for layer in range(config["layers"]):
        shapes += [(f"rnn.weight_ih_l{layer}", f"{gates} x {'H' if layer else 'E'}")]
        shapes += [(f"rnn.weight_hh_l{layer}", f"{gates} x H")]
        shapes += [(f"rnn.bias_ih_l{layer}", gates), (f"rnn.bias_hh_l{layer}", gates)]
    shapes += [("linear.weight", "C x H"), ("linear.bias", "C")]
    rows, total = [], 0
    for name, symbols in shapes:
        shape = [sizes[symbol] for symbol in symbols.split(" x ")]
        total += math.prod(shape)
        shown = " x ".join(f"{size:,}" for size in shape)
        rows.append((name, symbols, shown, f"{math.prod(shape):,}"))
    return Table(
        f"{cell.upper()}: parameters (V words, E embedding, H hidden, C topics)",
        ("parameter", "shape", "sizes", "values"),
        [*rows, ("total", "", "", f"{total:,}")],
    )


def remarks(record: Record, found: Groups) -> Iterator[str]:
    """What the figures say on length, cell and chance; of fusedrnn's models where there are any."""
    runs = {group: results.ours(by_impl) for group, by_impl in found.items()}
    scores = {group: results.last(of_seeds, "accuracy") for group, of_seeds in runs.items()}
    cells = list(dict.fromkeys(cell for cell, _ in scores))
    lengths = sorted({T for _, T in scores})
    low, high = lengths[0], lengths[-1]
    compared = []
    if low != high:
        compared += [(f"{c.upper()}, from T = {low} to {high}", (c, low), (c, high)) for c in cells]
    if "rnn" in cells and "lstm" in cells:
        compared += [(f"T = {T}, from RNN to LSTM", ("rnn", T), ("lstm", T)) for T in lengths]
    yield f"Always answering the most frequent topic scores {record['majority']:.3f}."
    for what, a, b in compared:
        before, after = statistics.mean(scores[a]), statistics.mean(scores[b])
        yield f"{what}: accuracy {before:.3f} to {after:.3f}, {verdict(scores[a], scores[b])}."


def verdict(before: Sequence[float], after: Sequence[float]) -> str:
    """How two sets of scores over seeds differ: clearly only beyond `CLEAR` standard errors."""
    change = statistics.mean(after) - statistics.mean(before)
    if min(len(before), len(after)) < 2:
        return f"a change of {change:+.3f} from one seed, which says little"
    error = standard_error(before, after)
    if abs(change) <= CLEAR * error:
        return f"no clear change ({change:+.3f}, standard error {error:.3f})"
    return f"clearly {'better' if change > 0 else 'worse'} ({change:+.3f} ± {error:.3f})"

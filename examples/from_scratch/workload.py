"""From scratch as a workload: same losses, and how much time each form takes.

The losses of the first updates and of the epochs differ by rounding, of which a rounded file would
show nothing: the runs record the differences themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, product
from typing import Any

import torch
from torch.nn import functional as F

from examples import data
from examples.driver import results
from examples.driver.layers import CELLS, NAMES
from examples.driver.options import positive, sized
from examples.driver.results import Groups, Record
from examples.driver.tables import Headline, Summary, Table, ratio
from examples.driver.workload import Chart, Claim, Epoch, Group, Job, Run, Say, Workload
from examples.from_scratch import model
from examples.from_scratch.model import SCRATCH
from examples.from_scratch.written_out import GATES
from examples.time_machine import model as time_machine

ROUNDING = 1e-9  # float64 losses further apart than this share of them are not rounding's
# What the texts report, by cell and units.
CLAIMED = {("rnn", 512): ": perplexity 1.1, 37,989 characters/s on their machine"}
SHOWN = "time"  # whose letters are shown one-hot
NEAR = 0.01  # share of a loss within which two are called near

TEXT = """\
A recurrent layer can be written in a few lines of torch: every gate has its own weight matrices and
bias, and a Python loop takes one step after the other. Here these lines learn to predict the next
character of The Time Machine ({hidden} units, {batch} rows of {steps} characters an update), and
beside them a model whose one layer has been loaded with the same weights. Both compute the same,
so their losses agree; but each step of the loop starts a handful of small operations for every
gate, forward and again backward, while the layer does all steps in one call."""


class FromScratch(Workload):
    name = "from_scratch"
    about = "Train the written-out RNN, GRU and LSTM beside layers of the same weights."
    cells = CELLS
    example = "from_scratch --cell rnn --hidden 512 --epochs 500"
    sizes, fixed = model.CONFIG, ("layers", "dropout")  # one layer is written out
    epochs = model.CONFIG.epochs
    unit = "tokens"
    measure = "perplexity"

    def options(self, add: Callable[..., Any]) -> None:
        add("--log-every", type=positive, default=10, help="epochs between printed lines")

    def configs(self, args: argparse.Namespace) -> Job:
        text = data.time_machine(args.data_dir, args.synthetic).to(args.device)
        config = sized(args, model.CONFIG, replace(model.CONFIG, epochs=4))
        one_hot = F.one_hot(torch.tensor(text.encode(SHOWN)), len(text.symbols)).tolist()
        extra = {
            "one_hot": [{"symbol": s, "vector": v} for s, v in zip(SHOWN, one_hot, strict=True)]
        }
        return Job(args, config, text, text.source, [str(text)], extra=extra)

    def build(self, job: Job) -> Iterator[Group]:
        args, config, text = job.args, job.config, job.data
        count = 8 if args.quick else 40  # updates compared loss by loss
        compared = job.extra.setdefault("compared", [])
        untrained = job.extra.setdefault("untrained", [])
        for cell, seed in product(args.cell, args.seed):
            torch.manual_seed(seed)
            models = model.build_models(cell, args.impl, len(text.symbols), config)
            runs = [
                model.new_run(cell, impl, seed, each.to(args.device), text, config)
                for impl, each in models.items()
            ]
            tensors = {name: list(p.shape) for name, p in models[SCRATCH].named_parameters()}
            about = {"cell": cell, "seed": seed, "tensors": tensors, "count": count}
            wrote = time_machine.generate(models[SCRATCH], text, time_machine.PREFIXES[0])
            untrained.append({"cell": cell, "seed": seed, "text": wrote})
            losses = model.compare(models, text.tokens, config, seed, count)
            compared += [about | compared_losses(dtype, of) for dtype, of in losses.items()]
            shapes = ", ".join(f"{name} {shape}" for name, shape in tensors.items())
            more = f" in {len(tensors)} tensors: {shapes}"
            yield Group(runs, config.epochs, f"{cell.upper()}, seed {seed}", more)

    def ended(self, job: Job, group: Group, run: Run, say: Say) -> dict[str, Any]:
        scratch = group.runs[0]
        wrote = time_machine.generate(run.model, job.data, time_machine.PREFIXES[0])
        say(wrote)
        found = {} if run is scratch else {"drift": drift(run.history, scratch.history)}
        return {"text": wrote, **found}

    def summarise(self, record: Record) -> Summary:
        found = results.groups(record["runs"], "cell")
        title = f"Perplexity after {record['config']['epochs']} epochs"
        columns = {"perplexity": results.score("perplexity", 4)}
        return Summary(
            title="From scratch: the cells written out, beside layers of the same weights",
            text=TEXT.format(**record["config"]).replace("\n", " "),
            tables=[
                results.times("Seconds per epoch, trained in turn", ("cell",), found, ".3f"),
                _losses(record, found),
                results.scores(title, ("cell",), found, columns),
                _texts(record),
                _one_hot(record),
                _tensors(record),
            ],
            remarks=[*_remarks(record, found)],
            headline=[_headline(cell, by_impl) for (cell,), by_impl in found.items()],
        )

    def claims(self, record: Record) -> list[Claim]:
        found, H = results.groups(record["runs"], "cell"), record["config"]["hidden"]
        epochs = record["config"]["epochs"]
        rows = []
        for (cell,), by_impl in found.items():
            shown = results.score("perplexity", 2)
            written = by_impl[SCRATCH]
            claimed = f"{cell.upper()} from scratch, one-hot characters, {H} units, 500 epochs"
            rate = f"{results.speed(written):,.0f} characters/s"
            layers = [f"{NAMES[i]} {shown(by_impl[i])}" for i in _impls(found)]
            said = f"perplexity {shown(written)} after {epochs}, {rate}; {', '.join(layers)}"
            rows.append((claimed + CLAIMED.get((cell, H), ""), said))
        if ("lstm",) in found:
            claim = "an LSTM from scratch has 16 tensors"
            tensors = next(e["tensors"] for e in record["compared"] if e["cell"] == "lstm")
            rows.append((claim, f"{len(tensors)} trained and the states H, C: {len(tensors) + 2}"))
        before, after = results.first_seed(record, "untrained")[0], results.first_seed(record)[0]
        texts = f'"{before["text"]}", then "{after["text"]}"'
        return [*rows, ("what the model writes before and after training", texts)]

    def draw(self, record: Record) -> list[Chart]:
        first = results.first_seed(record)
        cells = list(dict.fromkeys(run["cell"] for run in first))
        impls = _impls(results.groups(first, "cell"))
        curves: dict[str, dict[str, list[float]]] = {cell: {} for cell in cells}
        drifts, styles, drifting = {}, {}, {}
        for run in first:
            name, impl = f"{run['cell'].upper()} {NAMES[run['impl']]}", run["impl"]
            curves[run["cell"]][name] = [epoch.perplexity for epoch in run["epochs"]]
            if "drift" in run:
                drifts[name] = run["drift"]
            color = f"C{cells.index(run['cell'])}"
            styles[name] = {impls[0]: f"{color}-", SCRATCH: f"{color}--"}.get(impl, "k:")
            drifting[name] = f"{color}-" if impl == impls[0] else f"{color}--"
        same = "Perplexity while training, one line on the other: written out, and as layers."
        title = "{}: the written-out cell and the layers learn alike"
        rounding = "rounding, grown by every update."
        far = f"How far the layers' losses have been from the written-out cell's: {rounding}"
        against = "Rounding grows: losses against the written-out cell's"
        look: dict[str, Any] = {"log_y": True, "styles": styles}
        y, grown = "largest relative difference so far", any(v[-1] for v in drifts.values())
        return [
            *(
                Chart(f"-{cell}", same, title.format(cell.upper()), "perplexity", lines, **look)
                for cell, lines in curves.items()
            ),
            Chart("-drift", far, against, y, drifts, log_y=grown, styles=drifting),
        ]


WORKLOAD = FromScratch()


def compared_losses(dtype: str, losses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The written-out cell's first and last loss, and how far the layers' are from all of its, as a
    share of them: the largest, by implementation."""
    own = losses[SCRATCH]
    apart = {
        impl: max(abs(a - b) / abs(b) for a, b in zip(found, own, strict=True))
        for impl, found in losses.items()
        if impl != SCRATCH
    }
    return {"dtype": dtype, "first": own[0], "last": own[-1], "apart": apart}


def drift(layer: Sequence[Epoch], scratch: Sequence[Epoch]) -> list[float]:
    """How far a layer's losses per epoch have ever been from the written-out cell's, as a share of
    it: after each epoch the largest so far."""
    pairs = zip(layer, scratch, strict=True)
    return list(accumulate((abs(a.loss - b.loss) / abs(b.loss) for a, b in pairs), max))


def _impls(found: Groups) -> list[str]:
    """The implementations beside the written-out cell."""
    return [impl for impl in next(iter(found.values())) if impl != SCRATCH]


def _apart(record: Record, dtype: str, cell: str, impl: str) -> float:
    """The largest difference of the first losses, over all seeds."""
    entries = [e for e in record["compared"] if (e["cell"], e["dtype"]) == (cell, dtype)]
    return float(max(entry["apart"][impl] for entry in entries))


def _losses(record: Record, found: Groups) -> Table:
    impls = _impls(found)
    rows = []
    for entry in results.first_seed(record, "compared"):
        cell, dtype = entry["cell"], entry["dtype"]
        far = (_share(_apart(record, dtype, cell, impl)) for impl in impls)
        rows.append((cell.upper(), dtype, f"{entry['first']:.6f}", f"{entry['last']:.6f}", *far))
    count = record["compared"][0]["count"]
    title = f"Losses of the first {count} updates, and how far the layers' are from them"
    return Table(title, ("cell", "dtype", "first", "last", *(NAMES[impl] for impl in impls)), rows)


def _share(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _texts(record: Record) -> Table:
    """What the first seed's models write after the first prefix, untrained and trained."""
    rows: list[tuple[str, ...]] = [
        (entry["cell"].upper(), "any: equal weights", "before", entry["text"])
        for entry in results.first_seed(record, "untrained")
    ]
    rows += [
        (run["cell"].upper(), NAMES[run["impl"]], "after", run["text"])
        for run in results.first_seed(record)
    ]
    return Table("Text written before and after training", ("cell", "layers", "", "text"), rows)


def _one_hot(record: Record) -> Table:
    """Some letters as the layer gets them."""
    rows: list[tuple[str, ...]] = [
        (entry["symbol"], str(entry["vector"].index(1)), " ".join(map(str, entry["vector"])))
        for entry in record["one_hot"]
    ]
    return Table("Letters one-hot: what a layer gets", ("letter", "number", "vector"), rows)


def _tensors(record: Record) -> Table:
    """What each tensor of the written-out cell is of the layer."""
    H, B = record["config"]["hidden"], record["config"]["batch"]
    rows: list[tuple[str, ...]] = []
    shapes_of = {entry["cell"]: entry["tensors"] for entry in record["compared"]}
    for cell, tensors in shapes_of.items():
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
    head = ("cell", "written out", "layer")
    return Table("The tensors, and where the layer has them", head, rows)


def _shapes(names: tuple[str, ...], shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} {shapes[name]}" for name in names)


def _slower(by_impl: Mapping[str, results.Runs], impl: str) -> str:
    """The written-out cell's time over that of an implementation's layer."""
    return ratio(results.seconds(by_impl[SCRATCH]), results.seconds(by_impl[impl]))


def _remarks(record: Record, found: Groups) -> Iterator[str]:
    impls = _impls(found)
    for (cell,), by_impl in found.items():
        factors = (f"{_slower(by_impl, i)} the time of {NAMES[i]}'s layer" for i in impls)
        yield f"{cell.upper()}, written out: an epoch takes {' and '.join(factors)}."
    single, double = (
        max(_apart(record, dtype, cell, impl) for (cell,) in found for impl in impls)
        for dtype in ("float32", "float64")
    )
    more = "more than rounding: the two do not compute the same"
    verdict = "rounding, not another formula" if double < ROUNDING else more
    yield (
        f"Over the first {record['compared'][0]['count']} updates, losses of equal weights are at "
        f"most {_share(single)} of their value apart in float32 and {_share(double)} in float64: "
        f"{verdict}."
    )
    last = record["config"]["epochs"]
    layers = [run for run in record["runs"] if "drift" in run]
    together = min(sum(share <= NEAR for share in run["drift"]) for run in layers)
    epochs = f"all {last}" if together == last else str(together)
    near = f"their losses per epoch stay within {NEAR:.0%} of each other"
    yield f"Trained on in float32, {near} for {epochs} epochs."


def _headline(cell: str, by_impl: Mapping[str, results.Runs]) -> Headline:
    shown = results.score("perplexity", 2)
    system = f"From scratch, {cell.upper()}: written out, perplexity {shown(by_impl[SCRATCH])}"
    if "fusedrnn" in by_impl:
        system += f", {_slower(by_impl, 'fusedrnn')} fusedrnn's time"
    both = results.both(by_impl, lambda runs: f"perplexity {shown(runs)}")
    return (system, *both, results.speedup(by_impl))

"""Sequence to sequence as a workload: exact matches against forcing, by form, and the times.

The test pairs are a sample, so a difference is named beside its standard error; what another seed
would change is in it only where there are several.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from examples.driver import results
from examples.driver.options import sized
from examples.driver.plots import Chart, Points
from examples.driver.results import Groups, Record, Runs
from examples.driver.tables import Summary, Table
from examples.driver.workload import Group, Job, Run, Say, Workload
from examples.seq2seq import dates, model

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


class Seq2Seq(Workload):
    name = "seq2seq"
    about = (
        "Train an encoder and a decoder to write dates as ISO 8601. "
        "The dates are generated: --data-dir is not used, --synthetic only named."
    )
    example = "seq2seq --cell gru --forcing 1.0 scheduled --hidden 32"
    sizes = model.CONFIG
    cells = model.CELLS
    epochs = model.CONFIG.epochs
    unit = "symbols"

    def options(self, add: Callable[..., Any]) -> None:
        of = f"from 0 to 1, or {model.SCHEDULED} to fall from 1 to 0"
        every = {"type": _forcing, "nargs": "+", "default": list(model.FORCINGS)}
        add("--forcing", **every, help=f"teacher forcing ratios, in turn: {of}")

    def configs(self, args: argparse.Namespace) -> Job:
        config = sized(args, model.CONFIG, model.QUICK)
        pairs = model.load(config, args.device)
        counts = f"{len(pairs.train):,} pairs to train, {len(pairs.test):,} to test"
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
        """Exact matches by form, and the first test pair of each."""
        assert isinstance(run.model, model.Translator)
        pairs = job.data.test_pairs
        found = model.translations(run.model, job.data.test)
        first = {
            pair.form: [pair.spelling, pair.iso, translation]
            for pair, translation in reversed(list(zip(pairs, found, strict=True)))
        }
        by_form = model.by_form(found, pairs)
        return {"by_form": by_form, "examples": [first[form] for form in by_form]}

    def summarise(self, record: Record) -> Summary:
        config, found = record["config"], results.groups(record["runs"], "cell", "forcing")
        keys, last = ("model", "forcing"), next(reversed(found))[1]
        title = f"Exact match on {config['test']:,} test pairs after {config['epochs']} epochs "
        columns = {
            "training loss": results.score("loss", 4),
            "exact match": results.score("exact", 4),
        }
        seconds = f"Seconds per epoch of {config['train']:,} pairs"
        return Summary(
            title="Sequence to sequence: dates as ISO 8601",
            text=TEXT,
            tables=[
                results.scores(title + f"({results.over(record)})", keys, found, columns),
                results.times(seconds, keys, found),
                _examples(record),
            ],
            remarks=[*remarks(record)],
            headline=results.headline(  # of one of the ratios; the tables have the others
                {key: by_impl for key, by_impl in found.items() if key[1] == last},
                "Dates to ISO 8601, {}, forcing {}: exact match",
                results.score("exact", 3),
            ),
        )

    def draw(self, record: Record) -> list[Chart]:
        found = results.groups(record["runs"], "cell", "forcing")
        first = record["options"]["impl"][0]
        against, styles = _against(found)
        over = {}
        for (cell, forcing), by_impl in found.items():
            name = f"{cell.upper()}, forcing {forcing}"
            over[name] = results.curve(by_impl[first], "exact")
            color = f"C{record['options']['forcing'].index(forcing)}"
            styles[name] = color + ("-" if cell == record["options"]["cell"][0] else "--")
        title = "Dates to ISO 8601"
        after = (f"{title}, after {record['config']['epochs']} epochs", "exact match")
        dashed = "dashed: a ratio falling from 1 to 0."
        ratios = f"Exact match against the forcing ratio; dotted: torch.nn; {dashed}"
        epoch = f"Exact match on the test pairs after each epoch, {first}'s layers."
        return [
            Chart("", ratios, *after, against, x="teacher forcing ratio", styles=styles),
            Chart("-epochs", epoch, f"{title}, {first}", "exact match", over, styles=styles),
        ]


WORKLOAD = Seq2Seq()


def _forcing(text: str) -> str:
    if text == model.SCHEDULED:
        return text
    ratio = float(text)
    if not 0 <= ratio <= 1:
        raise argparse.ArgumentTypeError(f"must be {model.SCHEDULED} or from 0 to 1, got {text}")
    return str(ratio)


def _against(found: Groups) -> tuple[dict[str, Any], dict[str, str]]:
    """Exact matches over constant forcing ratios, and across them of a scheduled one; styles."""
    series: dict[str, Points] = {}
    styles: dict[str, str] = {}
    colors: dict[tuple[str, str], str] = {}
    for (cell, forcing), by_impl in found.items():
        for impl, runs in by_impl.items():
            color = colors.setdefault((cell, impl), f"C{len(colors)}")
            name, value = f"{cell.upper()}, {impl}", statistics.mean(results.last(runs, "exact"))
            ours = impl == "fusedrnn"
            if forcing == model.SCHEDULED:
                series[f"{name}, {forcing}"] = (0.0, 1.0), (value, value)
                styles[f"{name}, {forcing}"] = f"{color}{'--' if ours else '-.'}"
            else:
                places, values = series.get(name, ([], []))
                points = sorted([*zip(places, values, strict=True), (float(forcing), value)])
                series[name] = [p for p, _ in points], [v for _, v in points]
                styles[name] = f"{color}{'-' if ours else ':'}"  # equal ones lie on each other
    return series, styles


def remarks(record: Record) -> Iterator[str]:
    """What the figures say on forcing, forms and calls, of the first implementation."""
    impl = record["options"]["impl"][0]
    groups = results.groups(record["runs"], "cell", "forcing")
    found = {group: by_impl[impl] for group, by_impl in groups.items()}
    for cell in record["options"]["cell"]:
        of_cell = {forcing: runs for (c, forcing), runs in found.items() if c == cell}
        yield from _forcing_remarks(cell.upper(), of_cell, record["config"]["test"])
        shares = {
            form: statistics.mean(run["by_form"][form] for runs in of_cell.values() for run in runs)
            for form in next(iter(of_cell.values()))[0]["by_form"]
        }
        hardest = min(shares, key=shares.__getitem__)
        exact = f"{shares[hardest]:.3f} exact over all ratios."
        yield f'{cell.upper()}: the hardest form is "{hardest}", {exact}'


def _forcing_remarks(cell: str, of_cell: Mapping[str, Runs], n: int) -> Iterator[str]:
    """Every other forcing beside full forcing, in exact match and in time."""
    if "1.0" not in of_cell:
        return
    full = results.last(of_cell["1.0"], "exact")
    before = statistics.mean(full)
    others = {forcing: runs for forcing, runs in of_cell.items() if forcing != "1.0"}
    for forcing, runs in others.items():
        shares = results.last(runs, "exact")
        after = statistics.mean(shares)
        error = math.hypot(_error(full, n), _error(shares, n))
        clear = "" if abs(after - before) > 2 * error else ", no clear difference"
        longer = results.seconds(runs) / results.seconds(of_cell["1.0"])
        yield (
            f"{cell}, forcing 1.0 to {forcing}: exact match {before:.4f} to {after:.4f} "
            f"({after - before:+.4f}, standard error {error:.4f}{clear}); "
            f"an epoch takes {longer:.2f} times as long."
        )


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

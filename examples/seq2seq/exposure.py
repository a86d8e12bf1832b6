"""What the results say of teacher forcing: its price, as remarks and charts.

Exposure bias is what a decoder gets right more of when it is fed the truth than when it is fed its
own symbols. A slip, one wrong digit put into a row that would have been right, shows where it comes
from: a decoder that copies the date before repeats the mistake. Where hardly a row is right nothing
was learnt that could be compared, and no more is said than that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from examples.driver import results
from examples.driver.plots import Chart, Points
from examples.driver.results import Record, Runs
from examples.driver.tables import Claim, mean_std
from examples.seq2seq import model

LEARNT = 0.02  # of the rows right: with fewer, a model has learnt nothing to be compared
FULL = "1.0"  # the forcing that has never seen a mistake
SLIP = "Dates right after one wrong digit in the first date, in test rows that are right without it"
MEASURES: Mapping[str, Callable[[Record], float]] = {
    "exact match": lambda run: float(run["own"]["rows"]),
    "symbols right": lambda run: float(run["own"]["symbols"]),
}


def bias(run: Record) -> float:
    """The exposure bias of a trained run, of the share of its symbols that are right."""
    return float(run["truth"]["symbols"] - run["own"]["symbols"])


def recovered(run: Record) -> float:
    """The share of right dates after a slip."""
    return float(statistics.mean(run["after_slip"]))


def learnt(runs: Runs) -> bool:
    """Whether enough rows are right to say more of it, and some with every seed."""
    return _mean(runs, MEASURES["exact match"]) >= LEARNT and all(run["after_slip"] for run in runs)


def of_cell(record: Record, cell: str, impl: str | None = None) -> dict[str, Runs]:
    """The runs of each forcing, by default of the implementation asked for first."""
    impl = impl or record["options"]["impl"][0]
    found = results.groups(record["runs"], "cell", "forcing")
    return {forcing: by_impl[impl] for (c, forcing), by_impl in found.items() if c == cell}


def remarks(record: Record) -> Iterator[str]:
    """What the figures say on forcing, forms and calls, of the first implementation."""
    for cell in record["options"]["cell"]:
        name = cell.upper()
        found = of_cell(record, cell)
        taught = {forcing: runs for forcing, runs in found.items() if learnt(runs)}
        if not taught:
            yield (
                f"{name}: nothing was learnt. Fewer than {LEARNT:.0%} of the test rows are right "
                "with every forcing, so nothing follows for forcing or for the forms."
            )
            continue
        for forcing in found:
            if forcing not in taught:
                yield (
                    f"{name}, forcing {forcing}: not compared, fewer than {LEARNT:.0%} of the "
                    "test rows are right, or none with some seed."
                )
        for forcing, runs in taught.items():
            yield _bias_remark(name, forcing, runs)
            yield _slip_remark(name, forcing, runs)
        if FULL in taught:
            yield from _prices(name, taught, record["config"]["test"])
        yield _hardest(name, taught)


def claims(record: Record) -> list[Claim]:
    """The price of teacher forcing as a text names it, and what the record says of it."""
    claim = (
        "with teacher forcing alone a decoder never sees its own mistakes, and goes on from them"
    )
    said = []
    for cell in record["options"]["cell"]:
        for forcing, runs in of_cell(record, cell).items():
            shares = [recovered(run) for run in runs] if learnt(runs) else []
            shown = mean_std(shares, 3) if shares else "nothing learnt"
            said.append(f"{cell.upper()}, forcing {forcing}: {shown}")
    return [(claim, f"dates right after one wrong digit: {'; '.join(said)}")]


def _bias_remark(cell: str, forcing: str, runs: Runs) -> str:
    values = [bias(run) for run in runs]
    several = len(values) > 1
    error = f"standard error {_deviation(values) / math.sqrt(len(values)):.4f}"
    truth, own = (statistics.mean(run[fed]["symbols"] for run in runs) for fed in ("truth", "own"))
    first, last = (
        statistics.mean(run["truth"]["dates"][i] - run["own"]["dates"][i] for run in runs)
        for i in (0, -1)
    )
    return (
        f"{cell}, forcing {forcing}: {truth:.4f} of the symbols are right when the decoder is fed "
        f"the truth, {own:.4f} when it is fed its own: exposure bias {truth - own:.4f} "
        f"({error if several else 'one seed'}). Of the dates it is {first:.3f} at the first place "
        f"of the row and {last:.3f} at the last."
    )


def _slip_remark(cell: str, forcing: str, runs: Runs) -> str:
    values = [recovered(run) for run in runs]
    mean, n = statistics.mean(values), len(values)
    error = f"standard error {_deviation(values) / math.sqrt(n):.3f}" if n > 1 else "one seed"
    return (
        f"{cell}, forcing {forcing}: after one wrong digit in the first date of a row that was "
        f"right without it, {mean:.3f} of the dates that follow are right ({error})."
    )


def _prices(cell: str, taught: Mapping[str, Runs], n: int) -> Iterator[str]:
    """Every other forcing beside full forcing, in what is right and in time."""
    full = taught[FULL]
    for forcing, runs in taught.items():
        if forcing == FULL:
            continue
        changes = []
        for name, figure in MEASURES.items():
            before, after = ([figure(run) for run in of] for of in (full, runs))
            change = statistics.mean(after) - statistics.mean(before)
            error = math.hypot(standard_error(before, n), standard_error(after, n))
            clear = "" if abs(change) > 2 * error else ", no clear difference"
            changes.append(
                f"{name} {statistics.mean(before):.4f} to {statistics.mean(after):.4f} "
                f"({change:+.4f}, standard error {error:.4f}{clear})"
            )
        longer = results.seconds(runs) / results.seconds(full)
        yield (
            f"{cell}, forcing {FULL} to {forcing}, fed its own symbols: {', '.join(changes)}; "
            f"an epoch takes {longer:.2f} times as long."
        )


def standard_error(shares: Sequence[float], n: int) -> float:
    """The standard error of their mean: that of n test rows, or of the seeds if it is larger.

    Of a share of symbols that of n rows is an upper bound, as if a row were all right or all wrong.
    """
    p = statistics.mean(shares)
    return max(math.sqrt(p * (1 - p) / n), _deviation(shares) / math.sqrt(len(shares)))


def _hardest(cell: str, taught: Mapping[str, Runs]) -> str:
    shares = {
        form: statistics.mean(run["by_form"][form] for runs in taught.values() for run in runs)
        for form in next(iter(taught.values()))[0]["by_form"]
    }
    lowest = min(shares.values())
    hardest = [f'"{form}"' for form, share in shares.items() if share == lowest]
    said = f"the hardest form is {hardest[0]}"
    if len(hardest) > 1:
        said = f"no single form is the hardest: {', '.join(hardest)} are alike"
    return f"{cell}: {said}, {lowest:.3f} exact over all ratios."


def charts(record: Record, cell: str) -> list[Chart]:
    """What is right, and what is after a slip, against the ratio; dates by their place in the row;
    symbols while training."""
    impls = record["options"]["impl"]
    found = {impl: of_cell(record, cell, impl) for impl in impls}
    taught = {impl: {f: r for f, r in of.items() if learnt(r)} for impl, of in found.items()}
    config = model.Config(**record["config"])
    drawn = []
    for suffix, y, figure, chosen, caption in (
        ("", "exact match", MEASURES["exact match"], found, "Test rows right"),
        ("-slip", "dates right after a slip", recovered, taught, SLIP),
    ):
        if any(chosen.values()):
            title = _title(cell, y, figure, taught[impls[0]])
            drawn.append(_against(f"-{cell}{suffix}", caption, title, y, chosen, figure, config))
    first = found[impls[0]]
    return [*drawn, _by_place(record, cell, first), _epochs(record, cell, first)]


def _title(cell: str, y: str, figure: Callable[[Record], float], taught: Mapping[str, Runs]) -> str:
    if not taught:
        return f"{cell.upper()}: nothing was learnt"
    means = {forcing: _mean(runs, figure) for forcing, runs in taught.items()}
    best = max(means, key=means.__getitem__)
    beside = f"; with {FULL}, {means[FULL]:.3f}" if FULL in means and best != FULL else ""
    return f"{cell.upper()}, {y}: most with forcing {best}, {means[best]:.3f}{beside}"


def _against(
    suffix: str,
    caption: str,
    title: str,
    y: str,
    found: Mapping[str, Mapping[str, Runs]],
    figure: Callable[[Record], float],
    config: model.Config,
) -> Chart:
    """A line of each implementation over the constant ratios, and a point for a scheduled one at
    the mean of its ratios."""
    series: dict[str, Points] = {}
    errors: dict[str, list[float]] = {}
    styles: dict[str, str] = {}
    ratios = [model.forcing_ratio(model.SCHEDULED, e, config) for e in range(config.epochs)]
    for impl, of_impl in found.items():
        constant = sorted((float(f), runs) for f, runs in of_impl.items() if f != model.SCHEDULED)
        scheduled = [(statistics.mean(ratios), of_impl[f]) for f in of_impl if f == model.SCHEDULED]
        for name, color, points in (
            (impl, "C0", constant),
            (f"{impl}, scheduled", "C1", scheduled),
        ):
            if points:
                values = [[figure(run) for run in runs] for _, runs in points]
                series[name] = [ratio for ratio, _ in points], [*map(statistics.mean, values)]
                errors[name] = [*map(_deviation, values)]
                styles[name] = color + ("--" if impl == "torch" else "-")
    about = "against the forcing ratio of training; scheduled: at the mean of its ratios. "
    return Chart(
        suffix,
        f"{caption}, {about}Bars: standard deviation over seeds.",
        title,
        y,
        series,
        x="teacher forcing ratio",
        styles=styles,
        errors=errors,
    )


def _by_place(record: Record, cell: str, found: Mapping[str, Runs]) -> Chart:
    """Two lines each of full forcing and of the last other one."""
    shown = list(dict.fromkeys([*(f for f in found if f == FULL), *reversed([*found])]))[:2]
    series: dict[str, Points] = {}
    errors: dict[str, list[float]] = {}
    styles: dict[str, str] = {}
    places = [*range(1, record["config"]["row"] + 1)]
    for i, forcing in enumerate(shown):
        for fed, words, line in (("truth", "fed the truth", ":"), ("own", "fed its own", "-")):
            name = f"forcing {forcing}, {words}"
            columns = [*zip(*(run[fed]["dates"] for run in found[forcing]), strict=True)]
            series[name] = places, [*map(statistics.mean, columns)]
            errors[name] = [*map(_deviation, columns)]
            styles[name] = f"C{i}{line}"
    gaps = (f"{statistics.mean(map(bias, found[f])):.3f} with {f}" for f in shown)
    said = f"exposure bias {', '.join(gaps)}"
    title = said if any(learnt(found[f]) for f in shown) else "nothing was learnt"
    return Chart(
        f"-{cell}-places",
        "Test dates right at each place of the row, when the decoder is fed the true symbols and "
        f"when it is fed its own; {record['options']['impl'][0]}. "
        "Bars: standard deviation over seeds.",
        f"{cell.upper()}: {title}",
        "dates right",
        series,
        x="place in the row",
        styles=styles,
        errors=errors,
    )


def _epochs(record: Record, cell: str, found: Mapping[str, Runs]) -> Chart:
    shown = {f"forcing {f}": results.curve(runs, "symbols") for f, runs in found.items()}
    impl = record["options"]["impl"][0]
    return Chart(
        f"-{cell}-epochs",
        f"Symbols right of the validation rows after each epoch, fed its own; {impl}, mean over "
        "seeds.",
        f"{cell.upper()}: how each forcing learns",
        "symbols right, fed its own",
        dict([*shown.items()][:6]),
    )


def _mean(runs: Runs, figure: Callable[[Record], float]) -> float:
    return statistics.mean(map(figure, runs))


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0

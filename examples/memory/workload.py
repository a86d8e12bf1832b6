"""The adding problem as a workload: who learns to remember, after how many updates, and why."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from examples.driver import results
from examples.driver.layers import CELLS, NAMES
from examples.driver.options import sized
from examples.driver.plots import Points
from examples.driver.results import Groups, Record, Runs
from examples.driver.tables import Summary, Table
from examples.driver.workload import Chart, Claim, Epoch, Group, Job, Run, Workload
from examples.gradient_flow.gates import label, models
from examples.memory import model

SOLVED = 0.1  # of the error of guessing: below it, both numbers are remembered

TEXT = (
    "{steps} numbers go by, two of them are marked, one in the first half and one in the second. "
    "After the last step the network is to give the sum of the two, so it has to keep a number for "
    "up to {steps} steps while others go by. Always saying 0 has a mean squared error of 1/6 = "
    "0.167; remembering the second number alone has one of 1/12 = 0.083. What an LSTM keeps in c "
    "is multiplied by its forget gate f at every step, and so is the gradient that comes back "
    "along c. A bias b on that gate decides how far both reach at first: f is about sigmoid(b), "
    "0.5 for b = 0, 0.73 for 1, 0.993 for 5, and 0.993 to the power of 200 is still 0.26. But an "
    "open forget gate keeps everything: with the input gate half open c also sums up what was not "
    "marked, and where c is large tanh(c) hardly changes, so that the gradient into c is small. A "
    "bias of -5 on the input gate, in the last model, keeps c small. A model has learnt the task "
    "when its error on held-out rows falls below a tenth of guessing's and stays there."
)


class Memory(Workload):
    name = "memory"
    about = (
        "Train RNN, GRU and LSTM to add two numbers they saw long ago. "
        "The rows are generated: --data-dir is not used, --synthetic only named."
    )
    cells = CELLS
    epochs = model.CONFIG.epochs
    unit = "rows"
    example = "memory --cell gru --hidden 16 --steps 100"
    sizes = model.CONFIG

    def options(self, add: Callable[..., object]) -> None:
        add("--steps", type=_steps, help=f"T of a row; {model.CONFIG.steps} at full size")

    def configs(self, args: argparse.Namespace) -> Job:
        config = sized(args, model.CONFIG, model.QUICK)
        config = replace(config, steps=args.steps or config.steps)
        rows = model.load(config, args.device)
        line = f"{config.held_out:,} rows of {config.steps} steps to validate on"
        facts = {"guessing": rows.guessing}
        return Job(args, config, rows, "generated rows", [line], facts)

    def build(self, job: Job) -> Iterator[Group]:
        args, config = job.args, job.config
        initial = job.extra.setdefault("initial", [])
        for seed in args.seed:
            for cell, start in models(args.cell, model.SHOWN_STARTS):
                about = (start, job.data, config)
                runs = [model.new_run(cell, impl, *about, seed=seed) for impl in args.impl]
                for run in runs:
                    assert isinstance(run.model, model.Adder)
                    figures = model.figures(run.model, job.data)
                    who = {"impl": run.impl, "seed": seed, **run.fields}
                    initial.append({**who, **figures})
                yield Group(runs, config.epochs, f"{label(cell, start)}, seed {seed}")

    def told(self, run: Run, number: int, epoch: Epoch, final: int) -> str:
        updates = number * run.sizes["updates"]
        return (
            f"{run.impl:8}  {run.name}  update {updates}  error {epoch.figures['error']:.4f}  "
            f"{epoch.seconds:.2f} s"
        )

    def summarise(self, record: Record) -> Summary:
        config, found = record["config"], _groups(record)
        updates = config["updates"] * config["epochs"]
        seconds = f"Seconds per {config['updates']} updates"
        system = f"Adding problem, T = {config['steps']}, {{}}: error after {updates:,} updates"
        headline = results.headline(
            {(label(*key),): by_impl for key, by_impl in found.items() if key in _headlined(found)},
            system,
            results.score("error", 4),
        )
        return Summary(
            title="Memory: the adding problem",
            text=TEXT.format(**config),
            tables=[
                _learning(record, found),
                *_gates(record, found),
                results.times(seconds, ("model",), {(label(*k),): v for k, v in found.items()}),
            ],
            remarks=[*remarks(record)],
            headline=headline,
        )

    def claims(self, record: Record) -> list[Claim]:
        T, found = record["config"]["steps"], _groups(record)
        claim = f"an LSTM and a GRU learn what lies {T} steps back, an RNN does not"
        learnt = []
        for key, by_impl in found.items():
            seeds = _learnt(record, results.ours(by_impl))
            learnt.append(f"{label(*key)} {sum(map(bool, seeds))} of {len(seeds)}")
        return [(claim, f"trainings that learnt it: {', '.join(learnt)}")]

    def draw(self, record: Record) -> list[Chart]:
        found, T = _groups(record), record["config"]["steps"]
        seeds = len(record["options"]["seed"])
        spread = f" Mean of {seeds} seeds, with their standard deviation." if seeds > 1 else ""
        plain = [key for key in found if key[1] != "guarded"]
        lstm = [key for key in found if key[0] == "lstm"]
        y = "mean squared error, held out"
        charts = [
            (
                "",
                plain,
                f"Adding two numbers out of {T}: who learns it",
                "Each model's error on held-out rows.",
            ),
            ("-gates", lstm, "LSTM: the biases its gates begin with", "The LSTMs' error."),
        ]
        made = []
        for suffix, keys, title, caption in charts:
            if keys:
                series, errors, styles = _curves(record, found, keys)
                words: Any = {"errors": errors, "styles": styles, "x": "update"}
                made.append(Chart(suffix, caption + spread, title, y, series, **words))
        return made


WORKLOAD = Memory()


def _steps(text: str) -> int:
    if int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, got {text}")
    return int(text)


def _groups(record: Record) -> Groups:
    return results.groups(record["runs"], "cell", "start")


def _headlined(found: Groups) -> list[tuple[str, str]]:
    """RNN, GRU and the LSTM with a forget-gate bias of 1: the tables have the others."""
    return [key for key in found if key[0] != "lstm" or key[1] == "forget1"]


def learnt(history: Sequence[Epoch], guessing: float, updates: int) -> int | None:
    """The update after which the error is below SOLVED x guessing's, then and ever after; None
    when it is not at the end."""
    high = [n for n, epoch in enumerate(history, 1) if not epoch["error"] < SOLVED * guessing]
    last = high[-1] if high else 0
    return (last + 1) * updates if last < len(history) else None


def _learnt(record: Record, runs: Runs) -> list[int | None]:
    config = record["config"]
    return [learnt(run["epochs"], record["guessing"], config["updates"]) for run in runs]


def _learning(record: Record, found: Groups) -> Table:
    """A row for each model: when each seed learnt, and the last error."""
    rows: list[tuple[str, ...]] = []
    for key, by_impl in found.items():
        for impl, runs in by_impl.items():
            when = ", ".join(str(update or "never") for update in _learnt(record, runs))
            rows.append((label(*key), NAMES[impl], when, results.score("error", 4)(runs)))
    title = f"Learning ({results.over(record)}; guessing: {record['guessing']:.4f})"
    return Table(title, ("model", "layers", "learnt at update", "last error"), rows)


def _initial(record: Record, key: tuple[str, ...], figure: str) -> float:
    """That figure before training: the first implementation's, the mean over the seeds."""
    about = (*key, record["options"]["impl"][0])
    return statistics.fmean(
        r[figure] for r in record["initial"] if (r["cell"], r["start"], r["impl"]) == about
    )


def _gates(record: Record, found: Groups) -> list[Table]:
    """What the gates of each LSTM let c do, before and after training."""
    impl = record["options"]["impl"][0]
    rows: list[tuple[str, ...]] = []
    for key, by_impl in found.items():
        if key[0] == "lstm":
            shown: tuple[str, ...] = (label(*key),)
            for figure, spec in (("memory", ",.0f"), ("slope", ".2f")):
                last = statistics.fmean(results.last(by_impl[impl], figure))
                shown += (format(_initial(record, key, figure), spec), format(last, spec))
            rows.append(shown)
    title = (
        f"LSTM's memory, {NAMES[impl]}: steps in which the unit that forgets least keeps 1/e of "
        "its c, by the forget gate alone; mean slope of tanh at c_T"
    )
    head = ("model", "steps, at first", "trained", "slope, at first", "trained")
    return [Table(title, head, rows)] if rows else []


def _curves(
    record: Record, found: Groups, keys: Sequence[tuple[str, str]]
) -> tuple[dict[str, Points], dict[str, list[float]], dict[str, str]]:
    """Errors by update of the first implementation's runs, and of guessing; their deviations."""
    impl, config = record["options"]["impl"][0], record["config"]
    at = [config["updates"] * n for n in range(1, config["epochs"] + 1)]
    series: dict[str, Points] = {}
    errors: dict[str, list[float]] = {}
    styles = {"guessing": "k:"}
    for key in keys:
        runs, name = found[key][impl], label(*key)
        series[name] = (at, results.curve(runs, "error"))
        styles[name] = f"C{[*found].index(key)}-"
        if len(runs) > 1:
            errors[name] = results.spread(runs, "error")
    series["guessing"] = (at, [record["guessing"]] * len(at))
    return series, errors, styles


def remarks(record: Record) -> Iterator[str]:
    """Who learnt it, and what the figures say of the forget gate, of the first implementation."""
    impl, config = record["options"]["impl"][0], record["config"]
    total = f"{config['updates'] * config['epochs']:,} updates"
    found = {key: by_impl[impl] for key, by_impl in _groups(record).items()}
    when = {key: _learnt(record, runs) for key, runs in found.items()}
    if not any(update for of_seeds in when.values() for update in of_seeds):
        yield f"No model learnt the task within {total}: these figures do not tell them apart."
        return
    for key, of_seeds in when.items():
        some = [update for update in of_seeds if update]
        trained = f"{len(some)} of {len(of_seeds)} trainings learnt the task"
        after = f", after {statistics.fmean(some):,.0f} updates on average" if some else ""
        yield f"{label(*key)}: {trained} within {total}{after}."
    yield from _comparisons(when)
    yield from _grown(record, found, when)


def _comparisons(when: Mapping[tuple[str, str], Sequence[int | None]]) -> Iterator[str]:
    """Each LSTM beside the plain one, where all of both learnt."""
    plain = when.get(("lstm", "usual"), [None])
    for key, of_seeds in when.items():
        before = [update for update in plain if update]
        after = [update for update in of_seeds if update]
        if key[0] != "lstm" or key[1] == "usual":
            continue
        if len(before) < len(plain) or len(after) < len(of_seeds):
            continue
        a, b = statistics.fmean(before), statistics.fmean(after)
        yield f"{label(*key)} needs {b / a:.2f} times the updates of an LSTM as torch.nn draws it."


def _grown(
    record: Record,
    found: Mapping[tuple[str, str], Runs],
    when: Mapping[tuple[str, str], Sequence[int | None]],
) -> Iterator[str]:
    """Where training itself opened a forget gate: it learnt, and c lives longer than at first."""
    for key, runs in found.items():
        if key[0] != "lstm" or not all(when[key]):
            continue
        first, last = (
            _initial(record, key, "memory"),
            statistics.fmean(results.last(runs, "memory")),
        )
        if first < record["config"]["steps"] / 10 and last > 2 * first:
            yield (
                f"{label(*key)}: training opened a forget gate; c of the unit that forgets least "
                f"falls to 1/e in {last:,.0f} steps, at first in {first:,.0f}."
            )

"""hello as a workload: its runs, and what its results say of every step of learning."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product

from examples.driver import results
from examples.driver.layers import CELLS, NAMES
from examples.driver.options import sized
from examples.driver.results import Record, Runs
from examples.driver.tables import Summary, Table
from examples.driver.workload import Chart, Claim, Epoch, Group, Job, Run, Workload
from examples.hello import model
from examples.hello.model import LETTERS, WORD, said

TEXT = """\
The word {word} as a task: after each letter of {given} the network says which comes next, and
should say {wanted}. One l is followed by l and the other by o, so the letter alone does not decide;
the network must remember how far it has come. A recurrent layer of {hidden} units sees the letters
one-hot, a linear layer gives {letters} logits after every step (many to many), and Adam takes one
step per epoch, which is the whole word."""


class Hello(Workload):
    name = "hello"
    about = "Train RNN, GRU and LSTM to spell hello."
    cells = CELLS
    example = "hello --hidden 4 --seed 0 1 2"
    sizes = model.CONFIG
    epochs = model.CONFIG.epochs
    unit = "letters"

    def configs(self, args: argparse.Namespace) -> Job:
        config = sized(args, model.CONFIG, replace(model.CONFIG, epochs=60))
        lines = [f"{len(WORD) - 1} steps, {len(LETTERS)} letters"]
        return Job(args, config, None, WORD, lines)

    def build(self, job: Job) -> Iterator[Group]:
        args, config = job.args, job.config
        for cell, seed in product(args.cell, args.seed):
            runs = [model.new_run(cell, impl, seed, config, args.device) for impl in args.impl]
            yield Group(runs, config.epochs, f"{cell.upper()}, seed {seed}")

    def told(self, run: Run, number: int, epoch: Epoch, final: int) -> str:
        if 1 < number < final and said(epoch) == said(run.history[-2]):
            return ""
        heard = ", ".join(f"{a} -> {b}" for a, b in zip(WORD[:-1], said(epoch), strict=True))
        return f"{NAMES[run.impl]}: epoch {number}  loss {epoch.loss:.4f}  {heard}"

    def summarise(self, record: Record) -> Summary:
        found = results.groups(record["runs"], "cell")
        words = {"given": ", ".join(WORD[:-1]), "wanted": ", ".join(WORD[1:])}
        text = TEXT.format(word=WORD, letters=len(LETTERS), **words, **record["config"])
        columns = {f"spells {WORD[1:]} from epoch": _learnt, "loss": _loss}
        title, last = f"After {record['config']['epochs']} epochs", next(reversed(found))
        return Summary(
            title="hello: many to many, letter by letter",
            text=text.replace("\n", " "),
            tables=[
                results.scores(title, ("cell",), found, columns),
                _steps(found),
                results.times("Microseconds per update", ("cell",), found, ".0f", _microseconds),
            ],
            remarks=[_remark(cell, by_impl.values()) for (cell,), by_impl in found.items()],
            headline=results.headline(  # the last cell; the tables have the others
                {last: found[last]}, f"{WORD}, {{}}: epochs until it spells the word", _learnt
            ),
        )

    def claims(self, record: Record) -> list[Claim]:
        found = results.groups(record["runs"], "cell")
        learnt = (
            f"{cell.upper()} {_learnt(results.ours(runs))}" for (cell,), runs in found.items()
        )
        claim = f"many to many: a small network learns to answer {WORD[:-1]} with {WORD[1:]}"
        return [(claim, f"after epoch {', '.join(learnt)}")]

    def draw(self, record: Record) -> list[Chart]:
        found = results.groups(results.first_seed(record), "cell")
        caption = "Loss while learning the word; first seed, dashed: torch.nn."
        return [
            results.chart(
                "", caption, "Learning to spell hello", "loss", found, "{}", "loss", log_y=True
            )
        ]


WORKLOAD = Hello()


def learnt(history: Sequence[Epoch]) -> int | None:
    """The epoch after which a model spells the word, then and ever after; None when it does not
    at the end."""
    wrong = [number for number, epoch in enumerate(history, 1) if said(epoch) != WORD[1:]]
    last = wrong[-1] if wrong else 0
    return last + 1 if last < len(history) else None


def _learnt(runs: Runs) -> str:
    return ", ".join(str(learnt(run["epochs"]) or "never") for run in runs)


def _loss(runs: Runs) -> str:
    return ", ".join(f"{loss:.4f}" for loss in results.last(runs, "loss"))


def _microseconds(runs: Runs) -> float:
    return 1e6 * results.seconds(runs)


def _steps(found: results.Groups) -> Table:
    """The epochs that changed what the first implementation's model of the first seed says."""
    rows: list[tuple[str, ...]] = []
    for cell, by_impl in found.items():
        history = next(iter(by_impl.values()))[0]["epochs"]
        before = ""
        for number, epoch in enumerate(history, 1):
            if said(epoch) != before or number == len(history):
                before = said(epoch)
                right = [f"{epoch[f'right_{t}']:.2f}" for t in range(len(before))]
                rows.append((results.word(*cell), str(number), f"{epoch.loss:.4f}", before, *right))
    return Table(
        f"Whenever what is said after {WORD[:-1]} changes, and the probabilities of {WORD[1:]}",
        ("cell", "epoch", "loss", "says", *(f"{a} -> {b}" for a, b in pairwise(WORD))),
        rows,
    )


def _remark(cell: str, found: Iterable[Runs]) -> str:
    """On the two letters l, at the end: the proof that something is remembered."""
    histories = [run["epochs"] for runs in found for run in runs]
    right = sum(learnt(history) is not None for history in histories)
    first, second = (
        _below(min(history[-1][f"right_{t}"] for history in histories))
        for t in (WORD.index("l"), WORD.rindex("l"))
    )
    return (
        f"{cell.upper()}: {right} of {len(histories)} trainings spell the word; after the first l, "
        f"l has probability {first} or more, after the second, o has {second}."
    )


def _below(probability: float) -> str:
    """To three digits, rounded down: no probability short of 1 is shown as 1."""
    return f"{math.floor(1000 * probability) / 1000:.3f}"

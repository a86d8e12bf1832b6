"""hello: the smallest network that needs a memory, and every step of its learning.

Many to many: after h, e, l, l a layer of 8 units has to say e, l, l, o. The letter l is met twice
and must be answered by l the first time and by o the second, which no map from letter to letter
can do; only the state tells the two apart. The data is the word itself, one update an epoch.

    python benchmarks/workloads/hello.py --impl fusedrnn torch
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads import common, plots, training
from benchmarks.workloads.summary import Headline, Summary, Table, plot_path, ratio

WORD = "hello"
LETTERS = "helo"  # in the order of first appearance
NAMES = {"fusedrnn": "fusedrnn", "torch": "torch.nn"}
QUICK_EPOCHS = 60
TEXT = """\
The word {word} as a task: after each letter of {given} the network says which comes next, and
should say {wanted}. One l is followed by l and the other by o, so the letter alone does not decide;
the network must remember how far it has come. A recurrent layer of {hidden} units sees the letters
one-hot, a linear layer gives {letters} logits after every step (many to many), and Adam takes one
step per epoch, which is the whole word."""


@dataclass(frozen=True)
class Config:
    """The network's size and how it is trained."""

    hidden: int = 8
    learning_rate: float = 0.05
    epochs: int = 200


CONFIG = Config()


class Speller(nn.Module):
    """Logits [T, 4] of the next letter after each of the letters x [T]."""

    def __init__(self, layer: common.Layer, config: Config) -> None:
        super().__init__()
        self.rnn = layer(len(LETTERS), config.hidden)
        self.linear = nn.Linear(config.hidden, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        one_hot = F.one_hot(x, len(LETTERS)).to(self.linear.weight.dtype)
        output, _ = self.rnn(one_hot[:, None])  # [T, 1, H]: a batch of one word
        logits: Tensor = self.linear(output[:, 0])
        return logits


def build_model(cell: str, impl: str = "fusedrnn", config: Config = CONFIG) -> Speller:
    """The model in its initial state, drawn from torch's global generator.

    Args:
        cell: "rnn", "gru" or "lstm".
        impl: "fusedrnn" or "torch".
    """
    return Speller(common.layer_class(cell, impl), config)


def encode(text: str) -> Tensor:
    return torch.tensor([LETTERS.index(letter) for letter in text])


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One update on letters x [T] and the next ones y [T]; the mean cross-entropy, detached."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def figures(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """What `model` says after each letter of x [T], as ``said_<t>``, its index in LETTERS, and the
    probability it gives the right letter of y [T], as ``right_<t>``."""
    probabilities = model(x).softmax(-1).cpu()
    right = probabilities.gather(-1, y.cpu()[:, None])[:, 0]
    found: dict[str, float] = {}
    for t, (token, probability) in enumerate(
        zip(probabilities.argmax(-1).tolist(), right.tolist(), strict=True)
    ):
        found |= {f"said_{t}": token, f"right_{t}": probability}
    return found


def said(epoch: training.Epoch) -> str:
    """The letters that a model said after `epoch`."""
    return "".join(LETTERS[int(epoch.figures[f"said_{t}"])] for t in range(len(WORD) - 1))


def build_run(
    cell: str, impl: str, seed: int, config: Config, device: torch.device
) -> training.Run:
    """The training of one model, not yet begun."""
    training.start(seed)
    model = build_model(cell, impl, config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    x, y = encode(WORD[:-1]).to(device), encode(WORD[1:]).to(device)

    def updates() -> training.Updates:
        yield train_step(model, optimizer, x, y), len(y)

    return training.Run(
        name=f"{cell}-seed{seed}",
        impl=impl,
        seed=seed,
        model=model,
        optimizer=optimizer,
        updates=updates,
        task={
            "workload": "hello",
            "cell": cell,
            "hidden": config.hidden,
            "learning_rate": config.learning_rate,
        },
        after=partial(figures, model, x, y),
    )


def options() -> argparse.ArgumentParser:
    return common.parser(
        "Train RNN, GRU and LSTM to spell hello.", epochs=CONFIG.epochs, cells=common.CELLS
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; raises WorkloadError when it cannot go on."""
    args = options().parse_args(argv)
    common.prepare(args)
    say = common.Console(args.synthetic)
    say(f"data: the word {WORD}: {len(WORD) - 1} steps, {len(LETTERS)} letters")
    config = replace(CONFIG, epochs=common.epochs(args, CONFIG.epochs, QUICK_EPOCHS))
    checkpoints = common.checkpoints(args)

    def report(run: training.Run, number: int, epoch: training.Epoch) -> None:
        before = said(run.history[-2]) if number > 1 else ""
        if said(epoch) != before or number == config.epochs:
            say(_step(NAMES[run.impl], number, epoch))

    records = []
    for cell in args.cell:
        for seed in args.seed:
            runs = [build_run(cell, impl, seed, config, args.device) for impl in args.impl]
            parameters = common.count_parameters(runs[0].model)
            say(f"\n{cell.upper()}, seed {seed}: {parameters:,} parameters")
            training.fit(runs, config.epochs, report, checkpoints=checkpoints)
            records += [run.record(cell=cell, parameters=parameters) for run in runs]
    record = {"workload": "hello", "data": WORD, "config": asdict(config), "runs": records}
    common.finish(args, say, summary, record, draw)


def _step(name: str, number: int, epoch: training.Epoch) -> str:
    heard = ", ".join(f"{a} -> {b}" for a, b in zip(WORD[:-1], said(epoch), strict=True))
    return f"{name}: epoch {number}  loss {epoch.loss:.4f}  {heard}"


def learnt(epochs: Sequence[training.Epoch]) -> int | None:
    """The epoch after which a model spells the word, then and ever after; None when it does not
    at the end."""
    wrong = [number for number, epoch in enumerate(epochs, 1) if said(epoch) != WORD[1:]]
    last = wrong[-1] if wrong else 0
    return last + 1 if last < len(epochs) else None


def summary(record: Mapping[str, Any]) -> Summary:
    """Tables, remarks and the plot of one JSON record."""
    text = TEXT.format(
        word=WORD,
        given=", ".join(WORD[:-1]),
        wanted=", ".join(WORD[1:]),
        letters=len(LETTERS),
        **record["config"],
    )
    return Summary(
        title="hello: many to many, letter by letter",
        text=text.replace("\n", " "),
        tables=[_learning(record), _steps(record), _times(record)],
        remarks=_remarks(record),
        plots=[("", "Loss while learning the word; first seed.")],
        headline=_headline(record),
    )


def _groups(record: Mapping[str, Any]) -> dict[tuple[str, str], list[list[training.Epoch]]]:
    """The epochs of every seed, by cell and implementation."""
    found: dict[tuple[str, str], list[list[training.Epoch]]] = {}
    for run in record["runs"]:
        found.setdefault((run["cell"], run["impl"]), []).append(training.history(run))
    return found


def _epochs(histories: Sequence[Sequence[training.Epoch]]) -> str:
    counts = [learnt(epochs) for epochs in histories]
    return ", ".join("never" if count is None else str(count) for count in counts)


def _learning(record: Mapping[str, Any]) -> Table:
    return Table(
        f"After {record['config']['epochs']} epochs",
        ("cell", "layers", f"spells {WORD[1:]} from epoch", "loss"),
        [
            (
                cell.upper(),
                NAMES[impl],
                _epochs(histories),
                ", ".join(f"{epochs[-1].loss:.4f}" for epochs in histories),
            )
            for (cell, impl), histories in _groups(record).items()
        ],
    )


def _steps(record: Mapping[str, Any]) -> Table:
    """The epochs that changed what the first implementation's model of the first seed says."""
    rows: list[tuple[str, ...]] = []
    for (cell, impl), (epochs, *_) in _groups(record).items():
        if impl != record["options"]["impl"][0]:
            continue
        before = ""
        for number, epoch in enumerate(epochs, 1):
            if said(epoch) != before or number == len(epochs):
                before = said(epoch)
                right = [f"{epoch.figures[f'right_{t}']:.2f}" for t in range(len(before))]
                rows.append((cell.upper(), str(number), f"{epoch.loss:.4f}", before, *right))
    return Table(
        f"Whenever what is said after {WORD[:-1]} changes, and the probabilities of {WORD[1:]}",
        ("cell", "epoch", "loss", "says", *(f"{a} -> {b}" for a, b in pairwise(WORD))),
        rows,
    )


def _microseconds(record: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    return {
        key: 1e6 * statistics.median(map(training.seconds_per_epoch, histories))
        for key, histories in _groups(record).items()
    }


def _ratio(times: Mapping[tuple[str, str], float], cell: str) -> str:
    return ratio(times.get((cell, "torch")), times.get((cell, "fusedrnn")))


def _times(record: Mapping[str, Any]) -> Table:
    times, impls = _microseconds(record), record["options"]["impl"]
    both = len(impls) > 1
    return Table(
        "Microseconds per update",
        ("cell", *(NAMES[impl] for impl in impls), *["torch.nn / fusedrnn"] * both),
        [
            (
                cell.upper(),
                *(f"{times[cell, impl]:.0f}" for impl in impls),
                *[_ratio(times, cell)] * both,
            )
            for cell in record["options"]["cell"]
        ],
    )


def _remarks(record: Mapping[str, Any]) -> list[str]:
    """On the two letters l, at the end: the proof that something is remembered."""
    remarks = []
    for cell in record["options"]["cell"]:
        found = [
            epochs for (c, _), seeds in _groups(record).items() if c == cell for epochs in seeds
        ]
        right = sum(learnt(epochs) is not None for epochs in found)
        first, second = (
            min(epochs[-1].figures[f"right_{t}"] for epochs in found)
            for t in (WORD.index("l"), WORD.rindex("l"))
        )
        remarks.append(
            f"{cell.upper()}: {right} of {len(found)} trainings spell the word; after the first l, "
            f"l has probability {_below(first)} or more, after the second, o has {_below(second)}."
        )
    return remarks


def _below(probability: float) -> str:
    """To three digits, rounded down: no probability short of 1 is shown as 1."""
    return f"{math.floor(1000 * probability) / 1000:.3f}"


def _headline(record: Mapping[str, Any]) -> list[Headline]:
    """The last cell's row; the tables have the others."""
    groups, cell = _groups(record), record["options"]["cell"][-1]
    ours, theirs = (
        _epochs(groups[cell, impl]) if (cell, impl) in groups else ""
        for impl in ("fusedrnn", "torch")
    )
    system = f"{WORD}, {cell.upper()}: epochs until it spells the word"
    return [(system, ours, theirs, _ratio(_microseconds(record), cell))]


def draw(record: Mapping[str, Any], stem: Path) -> None:
    """Draws the losses of a JSON record's first seed."""
    curves, styles = {}, {}
    for (cell, impl), (epochs, *_) in _groups(record).items():
        name = f"{cell.upper()} {NAMES[impl]}"
        curves[name] = [epoch.loss for epoch in epochs]
        line = "-" if impl == record["options"]["impl"][0] else "--"
        styles[name] = f"C{record['options']['cell'].index(cell)}{line}"
    prefix = "synthetic | " * bool(record["options"]["synthetic"])
    plots.curves(
        plot_path(stem), curves, title=f"{prefix}{WORD}", y="loss", log=True, styles=styles
    )


if __name__ == "__main__":
    common.run(main)

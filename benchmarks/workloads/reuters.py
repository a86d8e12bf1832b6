"""Reuters newswire topics: an embedding, a two-layer RNN or LSTM, a linear layer on the last step.

Keras' task with a Keras-sized model, trained for each of three lengths T. Newswires are padded
and cut in front, so the last step is always a word and needs no packing.

    python benchmarks/workloads/reuters.py --impl torch --cell lstm --steps 50
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads import common, data, plots, training

CELLS = ("rnn", "lstm")
STEPS = (50, 100, 200)


@dataclass(frozen=True)
class Config:
    """The task's sizes and how it is trained."""

    vocabulary: int = data.NUM_WORDS
    embedding: int = 128
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.5
    topics: int = len(data.TOPICS)
    batch: int = 64
    learning_rate: float = 1e-3
    epochs: int = 5


CONFIG = Config()


@dataclass(frozen=True)
class Split:
    """Token matrices x [N, T] and topics y [N], int64."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    source: str  # a path, or "synthetic"

    def map(self, change: Callable[[Tensor], Tensor]) -> Split:
        """The same rows, every tensor changed."""
        return Split(
            change(self.x_train),
            change(self.y_train),
            change(self.x_test),
            change(self.y_test),
            self.source,
        )


@dataclass(frozen=True)
class Scores:
    """On the test rows."""

    rmse: float  # between softmax and one-hot, over all rows and topics
    accuracy: float


class Classifier(nn.Module):
    """Topic logits [B, topics] of token matrices [B, T]."""

    def __init__(self, layer: common.Layer, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        self.rnn = layer(
            config.embedding, config.hidden, num_layers=config.layers, dropout=config.dropout
        )
        self.linear = nn.Linear(config.hidden, config.topics)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(self.embedding(x.t()))  # time first: [T, B, H], no transposed copy
        logits: Tensor = self.linear(output[-1])
        return logits


def build_model(cell: str, impl: str = "fusedrnn", config: Config = CONFIG) -> Classifier:
    """The model in its initial state, drawn from torch's global generator.

    Args:
        cell: "rnn" or "lstm" ("gru" works too).
        impl: "fusedrnn" or "torch".
    """
    return Classifier(common.layer_class(cell, impl), config)


def build_optimizer(model: nn.Module, config: Config = CONFIG) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate)


def load(T: int, data_dir: str | Path | None = None, synthetic: data.Synthetic = "never") -> Split:
    """The newswires padded to T; the arguments are those of `data.reuters`."""
    return split(data.reuters(data_dir, synthetic), T)


def split(corpus: data.Reuters, T: int) -> Split:
    """`corpus` padded to T, in training and test rows."""
    x, y = (torch.from_numpy(array) for array in corpus.padded(T))
    n = corpus.n_train
    return Split(x[:n], y[:n], x[n:], y[n:], corpus.source)


def batches(
    x: Tensor, y: Tensor, size: int = CONFIG.batch, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every row once, `size` at a time (the last batch smaller); in order without `generator`."""
    order = (
        torch.arange(len(x)) if generator is None else torch.randperm(len(x), generator=generator)
    )
    for rows in order.to(x.device).split(size):
        yield x[rows], y[rows]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One update on x [B, T], y [B]; the mean cross-entropy, detached."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, size: int = 256) -> Scores:
    """Scores of `model` in evaluation mode; its mode is restored."""
    training_mode = model.training
    model.eval()
    squared = correct = 0.0
    topics = 1
    for rows, targets in batches(x, y, size):
        probabilities = model(rows).softmax(-1)
        topics = probabilities.shape[-1]
        one_hot = F.one_hot(targets, topics)
        squared += (probabilities - one_hot).double().square().sum().item()
        correct += (probabilities.argmax(-1) == targets).sum().item()
    model.train(training_mode)
    return Scores(math.sqrt(squared / (len(x) * topics)), correct / len(x))


def train(
    cell: str, impl: str, rows: Split, config: Config, *, seed: int, say: common.Console
) -> dict[str, Any]:
    """Trains and scores one model; returns its record for the JSON file."""
    T = rows.x_train.shape[1]
    torch.manual_seed(seed)
    model = build_model(cell, impl, config).to(rows.x_train.device)
    optimizer = build_optimizer(model, config)
    parameters = common.count_parameters(model)
    say(f"\n{cell.upper()}, T={T}, {impl}: {parameters:,} parameters\n{model}")
    order = torch.Generator().manual_seed(seed)

    def updates() -> training.Updates:
        for x, y in batches(rows.x_train, rows.y_train, config.batch, order):
            yield train_step(model, optimizer, x, y), len(x)

    def report(number: int, epoch: training.Epoch) -> None:
        say(f"epoch {number}  loss {epoch.loss:.4f}  {epoch.per_second:,.0f} newswires/s")

    history = training.fit(config.epochs, updates, report, label=f"{cell} T={T}")
    scores = evaluate(model, rows.x_test, rows.y_test)
    say(f"test RMSE {scores.rmse:.4f}  accuracy {scores.accuracy:.4f}")
    return {
        "cell": cell,
        "T": T,
        "parameters": parameters,
        **asdict(scores),
        "epochs": [asdict(epoch) for epoch in history],
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One line per model and length."""
    return common.table(
        ("model", "T", "loss", "RMSE", "accuracy", "seconds"),
        (
            (
                run["cell"].upper(),
                str(run["T"]),
                f"{run['epochs'][-1]['loss']:.4f}",
                f"{run['rmse']:.4f}",
                f"{run['accuracy']:.4f}",
                f"{sum(epoch['seconds'] for epoch in run['epochs']):.1f}",
            )
            for run in runs
        ),
    )


def options() -> argparse.ArgumentParser:
    parser = common.parser(
        "Train RNN and LSTM on the Reuters newswires.", epochs=CONFIG.epochs, cells=CELLS
    )
    parser.add_argument(
        "--steps", type=common.positive, nargs="+", default=list(STEPS), help="lengths T"
    )
    parser.add_argument(
        "--limit", type=common.positive, help="use only the first rows, for a quick look"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; raises WorkloadError when it cannot go on."""
    args = options().parse_args(argv)
    common.prepare(args)
    corpus = data.reuters(args.data_dir, "always" if args.synthetic else "never")
    say = common.Console(args.synthetic)
    say(
        f"data: {corpus.source}, {corpus.n_train} newswires to train, "
        f"{len(corpus.labels) - corpus.n_train} to test"
        + (f", only the first {args.limit} of each used" if args.limit else "")
    )
    if not args.synthetic:
        first = data.decode(corpus.values(0), data.reuters_words(args.data_dir))
        say(f"first newswire ({data.TOPICS[corpus.labels[corpus.order[0]]]}): {first}")
    config = replace(CONFIG, epochs=args.epochs)
    runs = []
    for cell in args.cell:
        for T in args.steps:
            rows = split(corpus, T).map(lambda t: t[: args.limit].to(args.device))
            runs.append(train(cell, args.impl, rows, config, seed=args.seed, say=say))
    say("\n" + table(runs))
    stem = common.stem("reuters", args)
    plots.curves(
        stem.with_suffix(".png"),
        {f"{r['cell'].upper()} T={r['T']}": [e["loss"] for e in r["epochs"]] for r in runs},
        title=f"{say.prefix}Reuters, {args.impl}",
        y="training loss",
    )
    common.write_results(
        stem.with_suffix(".json"), args, data=corpus.source, config=asdict(config), runs=runs
    )
    say(f"written: {stem}.json, {stem}.png")


if __name__ == "__main__":
    common.run(main)

"""Reuters newswire topics: an embedding, a two-layer RNN or LSTM, a linear layer on the last step.

Keras' task with a Keras-sized model, trained for each of three lengths T. Newswires are padded
and cut in front, so the last step is always a word and needs no packing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples import data
from examples.driver import training
from examples.driver.layers import Layer, layer_class
from examples.driver.parallel import processes

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


class Classifier(nn.Module):
    """Topic logits [B, topics] of token matrices [B, T]."""

    def __init__(self, layer: Layer, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        size = {"num_layers": config.layers, "dropout": config.dropout}
        self.rnn = layer(config.embedding, config.hidden, **size)
        self.linear = nn.Linear(config.hidden, config.topics)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(self.embedding(x.t()))  # time first: [T, B, H], no transposed copy
        logits: Tensor = self.linear(output[-1])
        return logits


def build_model(cell: str, impl: str = "fusedrnn", config: Config = CONFIG) -> Classifier:
    """The model in its initial state, drawn from torch's global generator."""
    return Classifier(layer_class(cell, impl), config)


def build_optimizer(model: nn.Module, config: Config = CONFIG) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate)


def split(
    corpus: data.Reuters, T: int, limit: int | None = None, device: torch.device | str = "cpu"
) -> Split:
    """`corpus` padded to T, in training and test rows; the first `limit` of each when given."""
    x, y = (torch.from_numpy(array).to(device) for array in corpus.padded(T))
    n = corpus.n_train
    return Split(x[:n][:limit], y[:n][:limit], x[n:][:limit], y[n:][:limit], corpus.source)


def batches(
    x: Tensor, y: Tensor, size: int = CONFIG.batch, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every row once, `size` at a time (the last batch smaller); in order without `generator`."""
    n = len(x)
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    for rows in order.to(x.device).split(size):
        yield x[rows], y[rows]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, weight: float = 1.0
) -> Tensor:
    """One update on x [B, T], y [B]; the mean cross-entropy, detached, times `weight`, which is
    that of this process's share of the batch (see ``parallel``)."""
    return training.step(optimizer, F.cross_entropy(model(x), y) * weight)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, size: int = 256) -> dict[str, float]:
    """Scores of `model` in evaluation mode, its mode restored: test_loss, the mean cross-entropy in
    nats; rmse, between softmax and one-hot over all rows and topics; accuracy."""
    training_mode = model.training
    model.eval()
    loss = squared = correct = 0.0
    topics = 1
    for rows, targets in batches(x, y, size):
        logits = model(rows)
        probabilities = logits.softmax(-1)
        topics = probabilities.shape[-1]
        one_hot = F.one_hot(targets, topics)
        loss += F.cross_entropy(logits.double(), targets, reduction="sum").item()
        squared += (probabilities - one_hot).double().square().sum().item()
        correct += (probabilities.argmax(-1) == targets).sum().item()
    model.train(training_mode)
    n = len(x)
    rmse = math.sqrt(squared / (n * topics))
    return {"test_loss": loss / n, "rmse": rmse, "accuracy": correct / n}


def new_run(
    cell: str, impl: str, rows: Split, config: Config = CONFIG, *, seed: int = 0
) -> training.Run:
    """One training, not begun: its model, updates and scores after each epoch."""
    T = rows.x_train.shape[1]
    torch.manual_seed(seed)
    model = build_model(cell, impl, config).to(rows.x_train.device)
    optimizer = build_optimizer(model, config)
    order = torch.Generator().manual_seed(seed)
    group = processes()
    wrapped = group.wrap(model)

    scores = partial(evaluate, model, rows.x_test, rows.y_test)

    def updates() -> training.Updates:
        for x, y in batches(rows.x_train, rows.y_train, config.batch, order):
            weight = group.weight(len(y))
            yield train_step(wrapped, optimizer, group.share(x), group.share(y), weight), len(y)

    about = ("reuters", f"{cell}-T{T}-seed{seed}", impl, seed, {"cell": cell, "T": T})
    sizes = {"data": data.kind(rows.source), "rows": len(rows.x_train), **asdict(config)}
    run = training.Run(*about, model, optimizer, updates, sizes, {"order": order}, scores)
    run.length = math.ceil(len(rows.x_train) / config.batch)
    return run


def majority(rows: Split) -> float:
    """The accuracy of always answering the most frequent topic of the training rows."""
    return (rows.y_test == rows.y_train.mode().values).double().mean().item()

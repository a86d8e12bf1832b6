"""IMDB film reviews: is a review positive? A two-layer bidirectional LSTM beside a plain RNN.

Both learn from the 25,000 training reviews alone, word vectors included, and are scored once on
the 25,000 test reviews. A review is its last 256 values, where its verdict usually stands. Batches
hold reviews of like length, so that little of them is padding; packed, none of it is computed, nor
where a layer of fusedrnn is given the lengths of a padded batch.

Initial values and rates were chosen on training reviews held out (``--held-out``), never on test
reviews. Word vectors start small and forget gates open: as torch draws them, vectors drown what is
learnt and states fade (LSTM, 6,000 reviews, 3 epochs, H = 48, T = 128, mean of two seeds: 67.5 % as
torch draws them, 80.7 % with small vectors, 81.2 % with a forget bias of 1 as well). A plain RNN
learns at a third of an LSTM's rate: over 256 steps it is easily thrown back.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim import Optimizer

from examples import data
from examples.driver import parallel, training
from examples.driver.layers import Layer, layer_class

Batch = tuple[Tensor, Tensor | None, Tensor]  # x [B, T], lengths [B] or None, y [B]
LAYOUTS = ("packed", "padded", "lengths")
OURS_ALONE = "lengths"  # torch.nn's layers take none
POOL = 50  # batches cut from one sorted pool: 1 % of their values pad; unsorted, 29 % would


@dataclass(frozen=True)
class Config:
    """One model's sizes and how it is trained."""

    vocabulary: int = data.IMDB_WORDS
    embedding: int = 100
    hidden: int = 128
    layers: int = 2
    bidirectional: bool = True
    dropout: float = 0.5  # of word vectors, between layers and of the last states
    steps: int = 256  # T: the last values of a review that are read
    batch: int = 64
    learning_rate: float = 1e-3
    clip: float = 1.0  # largest norm of all gradients together
    vectors: float = 0.05  # word vectors are drawn from -vectors..vectors
    forget_bias: float = 1.0  # of an LSTM
    epochs: int = 2


PLAIN = Config(layers=1, bidirectional=False, learning_rate=3e-4)
CONFIGS = {"rnn": PLAIN, "gru": Config(), "lstm": Config()}
QUICK = {"hidden": 48, "steps": 64, "batch": 32, "epochs": 3}


@dataclass(frozen=True)
class Reviews:
    """Reviews of at most T values; zeros fill a row, before them if `padded`, behind otherwise."""

    x: Tensor  # int64 [N, T]
    lengths: Tensor  # int64 [N], on the CPU, where packing needs them
    y: Tensor  # float32 [N]: 1 is positive
    padded: bool

    def batch(self, rows: Tensor) -> Batch:
        """(x [B, T'], lengths [B] or None when padded, y [B]) of this process's share of `rows`.

        T' is the longest of all `rows`, so that padding is the same for any number of processes.
        """
        T = int(self.lengths[rows].max())
        own = parallel.processes().share(rows)
        at = own.to(self.x.device)
        x = self.x[at, -T:] if self.padded else self.x[at, :T]
        return x, None if self.padded else self.lengths[own], self.y[at]


class Classifier(nn.Module):
    """Logits [B] of the positive sentiment; from the last state of each direction.

    `packs`: whether a batch that comes with its lengths is packed, or its lengths go to the layer.
    """

    def __init__(self, layer: Layer, config: Config, packs: bool = True) -> None:
        super().__init__()
        self.packs = packs
        self.directions = 2 if config.bidirectional else 1
        self.embedding = nn.Embedding(config.vocabulary, config.embedding, padding_idx=0)
        self.rnn = layer(
            config.embedding,
            config.hidden,
            num_layers=config.layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(self.directions * config.hidden, 1)
        self._draw(config)

    @torch.no_grad()
    def _draw(self, config: Config) -> None:
        vectors, H = self.embedding.weight, config.hidden
        vectors.uniform_(-config.vectors, config.vectors)[0] = 0  # padding
        if self.rnn.mode == "LSTM":
            for name, parameter in self.rnn.named_parameters():
                if name.startswith("bias_ih"):
                    parameter[H : 2 * H] = config.forget_bias  # gates are i, f, g, o

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of x [B, T]: of falling `lengths` [B], or padded in front."""
        if lengths is None:
            _, state = self.rnn(self.dropout(self.embedding(x.t())))
        elif not self.packs:
            vectors = self.dropout(self.embedding(x.t()))
            _, state = self.rnn(vectors, lengths=lengths)
        else:
            words = pack_padded_sequence(x.t(), lengths)
            vectors = self.dropout(self.embedding(words.data))
            _, state = self.rnn(words._replace(data=vectors))
        h = state if isinstance(state, Tensor) else state[0]  # [L*D, B, H]
        last = h[-self.directions :].transpose(0, 1).flatten(1)
        logits: Tensor = self.linear(self.dropout(last))
        return logits.squeeze(1)


def build_model(
    cell: str, impl: str = "fusedrnn", config: Config | None = None, layout: str = "packed"
) -> Classifier:
    """The model in its initial state, drawn from torch's global generator."""
    packs = layout != OURS_ALONE
    return Classifier(layer_class(cell, impl), config or CONFIGS[cell], packs)


def split(
    corpus: data.Imdb, T: int, layout: str = "packed", limit: int | None = None, device: Any = "cpu"
) -> tuple[Reviews, Reviews]:
    """The training and the test reviews; the first `limit` of each when given."""
    padded = layout == "padded"
    x, y = (torch.from_numpy(array).to(device) for array in corpus.padded(T, front=padded))
    lengths = torch.from_numpy(corpus.lengths(T))
    n = corpus.n_train
    train, test = (
        Reviews(x[part][:limit], lengths[part][:limit], y[part][:limit].float(), padded)
        for part in (slice(None, n), slice(n, None))
    )
    return train, test


def held_out(train: Reviews) -> tuple[Reviews, Reviews]:
    """The training reviews in two parts: the last fifth is to score sizes and rates by, so that no
    test review has a say in them."""
    cut = len(train.y) - len(train.y) // 5
    first, last = (
        replace(train, x=train.x[at], lengths=train.lengths[at], y=train.y[at])
        for at in (slice(None, cut), slice(cut, None))
    )
    return first, last


def batches(lengths: Tensor, size: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Row numbers of reviews of like length, longest first, `size` at a time; every row once.

    With `generator` the rows are dealt at random into pools of `POOL` batches, each pool is sorted
    and cut, and the batches come in random order; without, all rows are one pool.
    """
    if generator is None:
        pools: tuple[Tensor, ...] = (torch.arange(len(lengths)),)
    else:
        pools = torch.randperm(len(lengths), generator=generator).split(size * POOL)
    cut = [
        rows
        for pool in pools
        for rows in pool[lengths[pool].argsort(descending=True, stable=True)].split(size)
    ]
    if generator is None:
        return cut
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]


def train_step(
    model: nn.Module, optimizer: Optimizer, batch: Batch, clip: float, weight: float = 1.0
) -> Tensor:
    """One update on a batch; the mean cross-entropy times `weight`, detached."""
    x, lengths, y = batch
    loss = F.binary_cross_entropy_with_logits(model(x, lengths), y) * weight
    return training.step(optimizer, loss, clip)


@torch.no_grad()
def evaluate(model: nn.Module, reviews: Reviews, size: int = 256) -> float:
    """Accuracy of `model` in evaluation mode, over all processes; its mode is restored."""
    together = parallel.processes()
    training_mode = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.float64, device=reviews.x.device)
    for rows in batches(reviews.lengths, size):
        x, lengths, y = reviews.batch(rows)
        right = (model(x, lengths) > 0) == (y > 0.5)
        correct += right.double().mean() * together.weight(len(rows)) * len(rows)
    model.train(training_mode)
    return together.mean(correct).item() / len(reviews.y)


def new_run(
    cell: str,
    impl: str,
    seed: int,
    layout: str,
    reviews: tuple[Reviews, Reviews],
    config: Config,
    *,
    source: str = "real",
    follow: bool = False,
) -> training.Run:
    """A model that trains on the first of `reviews`, in their layout.

    Args:
        source: "real" or "synthetic"; a checkpoint of one is none of the other.
        follow: score the second of `reviews` after every epoch.
    """
    train, test = reviews
    torch.manual_seed(seed)
    model = build_model(cell, impl, config, layout).to(train.x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    order = torch.Generator().manual_seed(seed)
    together = parallel.processes()
    wrapped = together.wrap(model)

    def updates() -> training.Updates:
        for rows in batches(train.lengths, config.batch, order):
            weight = together.weight(len(rows))
            batch = train.batch(rows)
            yield train_step(wrapped, optimizer, batch, config.clip, weight), len(rows)

    after = (lambda: {"accuracy": evaluate(model, test)}) if follow else None
    about = ("imdb", f"{cell}-{layout}-seed{seed}", impl, seed, {"cell": cell, "layout": layout})
    sizes = {"data": source, "reviews": len(train.y), **asdict(config)}
    run = training.Run(*about, model, optimizer, updates, sizes, {"order": order}, after)
    run.length = math.ceil(len(train.y) / config.batch)
    return run

"""Sequence to sequence: an encoder reads a date as people write it, a decoder writes ISO 8601.

One layer of each, LSTM or GRU, and nothing but the encoder's last state between them, so that the
lengths of both sides are free. The encoder takes packed rows. While training, the decoder is fed
the symbol that should have come before (teacher forcing) or the one it found most likely itself;
the forcing ratio is the probability of the former, drawn anew for every symbol (Bengio et al.,
2015), constant or scheduled to fall from 1 to 0. A ratio of 1 needs no symbol of the decoder's own:
the layer then runs over all steps in one call. Otherwise it is called a step at a time, where the
cost of a call shows. A test date counts when greedy decoding gives every symbol of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from examples.driver import training
from examples.driver.layers import Layer, State, layer_class
from examples.seq2seq import dates
from examples.seq2seq.dates import PAD, START, Pair, Rows

CELLS = ("lstm", "gru")
SCHEDULED = "scheduled"
FORCINGS = ("1.0", "0.5", "0.0", SCHEDULED)


@dataclass(frozen=True)
class Config:
    """The task's sizes and how it is trained."""

    train: int = 20_000  # pairs
    test: int = 2_000
    task_seed: int = 0  # of the pairs, which are the same for every --seed
    embedding: int = 32
    hidden: int = 128
    batch: int = 64
    learning_rate: float = 5e-3
    decay: float = 0.7  # of the learning rate, after every epoch
    clip: float = 1.0  # largest norm of all gradients together
    fall: int = 6  # epochs in which a scheduled ratio falls from 1 to 0
    epochs: int = 7


CONFIG = Config()
QUICK = replace(CONFIG, train=3_000, test=300, fall=2, epochs=3)


class Translator(nn.Module):
    """An encoder and a decoder over one alphabet."""

    def __init__(self, layer: Layer, symbols: int, config: Config) -> None:
        super().__init__()
        self.read = nn.Embedding(symbols, config.embedding)
        self.encoder = layer(config.embedding, config.hidden)
        self.written = nn.Embedding(symbols, config.embedding)
        self.decoder = layer(config.embedding, config.hidden)
        self.linear = nn.Linear(config.hidden, symbols)

    def encode(self, rows: Rows) -> State:
        """The state after each row's own last symbol."""
        embedded = self.read(rows.x.t())  # time first: [S, B, E]
        packed = rnn.pack_padded_sequence(embedded, rows.lengths, enforce_sorted=False)
        state: State = self.encoder(packed)[1]
        return state

    def decode(self, symbols: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [T, B, V] of what follows each of `symbols` [T, B], and the last state."""
        output, state = self.decoder(self.written(symbols), state)
        return self.linear(output), state

    def forward(
        self, rows: Rows, ratio: float = 1.0, coins: torch.Generator | None = None
    ) -> Tensor:
        """Logits [T, B, V] of ``rows.y``.

        Args:
            ratio: the probability that the decoder is fed a true symbol, not its own.
            coins: a CPU generator to draw that from; torch's global one when None.
        """
        state = self.encode(rows)
        truth = F.pad(rows.y.t()[:-1], (0, 0, 1, 0), value=START)  # [T, B]
        if ratio == 1:
            return self.decode(truth, state)[0]
        forced = (torch.rand(truth.shape, generator=coins) < ratio).to(truth.device)
        logits, state = self.decode(truth[:1], state)
        steps = [logits]
        for t in range(1, len(truth)):
            fed = torch.where(forced[t], truth[t], steps[-1][0].argmax(-1))
            logits, state = self.decode(fed[None], state)
            steps.append(logits)
        return torch.cat(steps)

    @torch.no_grad()
    def translate(self, rows: Rows, limit: int) -> list[str]:
        """Greedy decoding: the likeliest symbol each step, fed back, up to END or `limit`."""
        state = self.encode(rows)
        fed = torch.full((1, len(rows)), START, device=rows.x.device)
        found = []
        for _ in range(limit):
            logits, state = self.decode(fed, state)
            fed = logits.argmax(-1)
            found.append(fed)
        return [dates.text(row) for row in torch.cat(found).t().tolist()]


def build_model(cell: str, impl: str = "fusedrnn", config: Config = CONFIG) -> Translator:
    """The model in its initial state, drawn from torch's global generator."""
    return Translator(layer_class(cell, impl), len(dates.SYMBOLS), config)


def forcing_ratio(forcing: str, epoch: int, config: Config = CONFIG) -> float:
    """The forcing ratio in `epoch`, counted from 0: `forcing` itself unless it is "scheduled"."""
    if forcing != SCHEDULED:
        return float(forcing)
    return max(0.0, 1 - epoch / config.fall)


def train_step(
    model: Translator,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    ratio: float = 1.0,
    coins: torch.Generator | None = None,
    clip: float = CONFIG.clip,
) -> Tensor:
    """One update on `rows`; the mean cross-entropy over their symbols and ENDs, detached."""
    logits = model(rows, ratio, coins)
    loss = F.cross_entropy(logits.flatten(0, 1), rows.y.t().flatten(), ignore_index=PAD)
    return training.step(optimizer, loss, clip)


def translations(model: Translator, rows: Rows, size: int = 500) -> list[str]:
    """What `model` makes of every row, `size` rows at a time; no longer than the longest meaning,
    its END included."""
    limit = rows.y.shape[1]
    parts = torch.arange(len(rows)).split(size)
    return [found for part in parts for found in model.translate(rows.take(part), limit)]


def exact(found: Sequence[str], pairs: Sequence[Pair]) -> float:
    """The share of translations that are right in every symbol."""
    return sum(a == pair.iso for a, pair in zip(found, pairs, strict=True)) / len(pairs)


def by_form(found: Sequence[str], pairs: Sequence[Pair]) -> dict[str, float]:
    """`exact` of each form that occurs, in the order of ``FORMS``."""
    shares = {}
    for form in dates.FORMS:
        at = [i for i, pair in enumerate(pairs) if pair.form == form.name]
        if at:
            shares[form.name] = exact([found[i] for i in at], [pairs[i] for i in at])
    return shares


@dataclass(frozen=True)
class Data:
    """The pairs, and the same as symbols on the device."""

    train: Rows
    test: Rows
    test_pairs: list[Pair]  # as the rows of `test`


def load(config: Config = CONFIG, device: torch.device | str = "cpu") -> Data:
    """The pairs of ``config.task_seed``."""
    train, test = dates.pairs(config.train, config.test, config.task_seed)
    return Data(dates.rows(train, device), dates.rows(test, device), test)


def new_run(
    cell: str, impl: str, forcing: str, data: Data, config: Config = CONFIG, *, seed: int = 0
) -> training.Run:
    """One training, not begun: its model, updates and exact matches after each epoch."""
    torch.manual_seed(seed)
    model = build_model(cell, impl, config).to(data.train.x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    order, coins = (torch.Generator().manual_seed(seed) for _ in range(2))

    def updates() -> training.Updates:
        epoch = len(run.history)
        ratio = forcing_ratio(forcing, epoch, config)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.decay**epoch
        for at in torch.randperm(len(data.train), generator=order).split(config.batch):
            rows = data.train.take(at)
            loss = train_step(model, optimizer, rows, ratio, coins, config.clip)
            yield loss, int(rows.targets.sum())

    def after() -> dict[str, float]:
        return {"exact": exact(translations(model, data.test), data.test_pairs)}

    fields = {"cell": cell, "forcing": forcing}
    about = ("seq2seq", f"{cell}-forcing{forcing}-seed{seed}", impl, seed)
    generators = {"order": order, "coins": coins}
    run = training.Run(*about, fields, model, optimizer, updates, asdict(config), generators, after)
    return run

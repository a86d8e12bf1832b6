"""Sequence to sequence: an encoder reads a date as people write it, a decoder writes ISO 8601.

The decoder writes a row: the date and those after it. One layer of each, LSTM or GRU, and nothing
but the encoder's last state between them, so that the lengths of both sides are free. The encoder
takes packed rows. While training, the decoder is fed the symbol that should have come before
(teacher forcing) or the one it found most likely itself; the forcing ratio is the probability of
the former, drawn anew for every symbol (Bengio et al., 2015), constant or scheduled to fall from 1
to 0. A ratio of 1 needs no symbol of the decoder's own: the layer then runs over all steps in one
call. Otherwise it is called a step at a time, where the cost of a call shows.

A row is an exact match when greedy decoding gives every symbol of it. Up to its first mistake a
decoder that is fed its own symbols is fed the true ones, so an exact match cannot tell what comes
after a mistake. `exposure` does: it counts what is right both ways, date by date.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from examples.driver import training
from examples.driver.layers import Layer, State, layer_class
from examples.seq2seq import dates
from examples.seq2seq.dates import END, PAD, START, Pair, Rows

CELLS = ("lstm", "gru")
SCHEDULED = "scheduled"
FORCINGS = ("1.0", "0.5", "0.0", SCHEDULED)


@dataclass(frozen=True)
class Config:
    """The task's sizes and how it is trained."""

    train: int = 2_400  # pairs
    validation: int = 1_000  # scored after every epoch; sizes and rates were chosen on these
    test: int = 2_000  # scored once, after the last epoch
    row: int = 3  # dates to be written: that which was read and those after it
    task_seed: int = 0  # of the pairs, which are the same for every --seed
    embedding: int = 32
    hidden: int = 128
    batch: int = 32
    learning_rate: float = 0.01
    decay: float = 0.91  # of the learning rate, after every epoch
    clip: float = 1.0  # largest norm of all gradients together
    fall: int = 4  # epochs in which a scheduled ratio falls from 1 to 0
    epochs: int = 16


CONFIG = Config()
QUICK = replace(CONFIG, validation=200, test=300, fall=2, epochs=3)


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
    def write(self, rows: Rows, limit: int, slips: Tensor | None = None) -> Tensor:
        """Greedy decoding, int64 [limit, B]: the likeliest symbol each step, fed back; what comes
        after an END is no part of it.

        Args:
            slips: int64 [B], where in each row a wrong digit is written whatever is likeliest.
        """
        state = self.encode(rows)
        fed = torch.full((1, len(rows)), START, device=rows.x.device)
        found = []
        for t in range(limit):
            logits, state = self.decode(fed, state)
            fed = logits.argmax(-1)
            if slips is not None:
                fed = torch.where(slips == t, dates.next_digit(fed), fed)
            found.append(fed)
        return torch.cat(found)


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


PART = 500  # rows that are decoded together


def translations(model: Translator, rows: Rows) -> list[str]:
    """What `model` makes of every row; no longer than the longest target, its END included."""
    written = (model.write(part, rows.y.shape[1]) for part in _parts(rows))
    return [dates.text(row) for part in written for row in part.t().tolist()]


def _parts(rows: Rows) -> Iterator[Rows]:
    return (rows.take(at) for at in torch.arange(len(rows)).split(PART))


def exact(found: Sequence[str], pairs: Sequence[Pair]) -> float:
    """The share of translations that are right in every symbol."""
    return sum(a == pair.row for a, pair in zip(found, pairs, strict=True)) / len(pairs)


@dataclass(frozen=True)
class Shares:
    """What is right of the rows that a decoder writes."""

    rows: float  # right in every symbol
    symbols: float  # of all symbols, spaces and ENDs included
    dates: list[float]  # of the first dates of the rows, of the second, ...


def shares(right: Tensor, rows: Rows, length: int) -> Shares:
    """The shares of what is `right`, bool [T, B], in rows of `length` dates.

    A date counts with the space or the END after it: so the dates of a row are equally long.
    """
    width = (rows.targets // length).to(right.device)  # [B]
    place = torch.arange(len(right), device=right.device)[:, None] // width  # [T, B]
    whole = [right | (place != i) for i in range(length)]
    asked = rows.y.t() != PAD
    return Shares(
        rows=_mean((right | ~asked).all(0)),
        symbols=_mean(right[asked]),
        dates=[_mean(date.all(0)) for date in whole],
    )


def _mean(right: Tensor) -> float:
    return right.double().mean().item()


@torch.no_grad()
def exposure(model: Translator, rows: Rows, length: int) -> tuple[Shares, Shares]:
    """What is right of `rows` when the decoder is fed the true symbols, and when it is fed its own.

    The first asks for the next symbol of a row without a mistake, as training with a forcing ratio
    of 1 does; the second is greedy decoding. The difference is the exposure bias.
    """
    fed_truth, fed_own = [], []
    for part, y in zip(_parts(rows), rows.y.t().split(PART, 1), strict=True):
        fed_own.append(_right(model.write(part, len(y)), y))
        fed_truth.append(model(replace(part, y=y.t())).argmax(-1) == y)
    truth, own = (shares(torch.cat(right, 1), rows, length) for right in (fed_truth, fed_own))
    return truth, own


def _right(written: Tensor, y: Tensor) -> Tensor:
    """Where what is written is what should be; after its first END nothing is."""
    ends = (written == END).int()
    return (written == y) & (ends.cumsum(0) <= ends)


def after_slip(model: Translator, rows: Rows, length: int) -> list[float]:
    """The shares of right dates at the second, third, ... place when the last digit of the first
    date is made a wrong one, of those rows that are right when it is not; empty if there are none.

    The row was read well enough to be written without a mistake, so whether a date that follows is
    right depends on what the decoder makes of the mistake alone.
    """
    slipped, chosen = [], []
    for number, part in enumerate(_parts(rows)):
        y = part.y.t()
        whole = (_right(model.write(part, len(y)), y) | (y == PAD)).all(0)
        slips = (part.targets // length - 2).to(y.device)
        right = _right(model.write(part, len(y), slips), y)
        slipped.append(F.pad(right, (0, 0, 0, rows.y.shape[1] - len(y)))[:, whole])
        chosen.append(whole.nonzero().flatten().cpu() + number * PART)
    at = torch.cat(chosen)
    if not len(at):
        return []
    width = int(rows.targets[at].max())
    return shares(torch.cat(slipped, 1)[:width], rows.take(at), length).dates[1:]


def by_form(found: Sequence[str], pairs: Sequence[Pair]) -> dict[str, float]:
    """`exact` of each form that occurs, in the order of ``FORMS``."""
    by_name = {}
    for form in dates.FORMS:
        at = [i for i, pair in enumerate(pairs) if pair.form == form.name]
        if at:
            by_name[form.name] = exact([found[i] for i in at], [pairs[i] for i in at])
    return by_name


@dataclass(frozen=True)
class Data:
    """The pairs as symbols on the device, and those to test as they are."""

    train: Rows
    validation: Rows
    test: Rows
    test_pairs: list[Pair]  # as the rows of `test`


def load(config: Config = CONFIG, device: torch.device | str = "cpu") -> Data:
    """The pairs of ``config.task_seed``."""
    counts = (config.train, config.validation, config.test)
    parts = dates.pairs(counts, config.row, config.task_seed)
    train, validation, test = (dates.rows(part, device) for part in parts)
    return Data(train, validation, test, parts[2])


def new_run(
    cell: str, impl: str, forcing: str, data: Data, config: Config = CONFIG, *, seed: int = 0
) -> training.Run:
    """One training, not begun: its model, updates, and validation after each epoch."""
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
        own = exposure(model, data.validation, config.row)[1]
        return {"exact": own.rows, "symbols": own.symbols}

    fields = {"cell": cell, "forcing": forcing}
    about = ("seq2seq", f"{cell}-forcing{forcing}-seed{seed}", impl, seed)
    generators = {"order": order, "coins": coins}
    run = training.Run(*about, fields, model, optimizer, updates, asdict(config), generators, after)
    run.length = math.ceil(len(data.train) / config.batch)
    return run

"""Time Machine: a character language model, on the novel's first 10,000 characters and on all.

d2l's task: one-hot characters into an RNN, GRU or LSTM of 256 units, trained by truncated
backpropagation either on sequential partitions (each row goes on where it stopped, so the state is
carried and detached) or on randomly sampled subsequences (the state starts anew every batch). Of
10,000 characters d2l's model learns all by heart; of the whole text the last tenth is held out, so
that what is learnt can be told from what is remembered.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples import data
from examples.driver import training
from examples.driver.errors import WorkloadError
from examples.driver.layers import Layer, State, layer_class

SAMPLINGS = ("sequential", "random")
Batches = Iterator[tuple[Tensor, Tensor]]
PREFIXES = ("time traveller", "traveller")


@dataclass(frozen=True)
class Config:
    """The task's sizes and how it is trained."""

    hidden: int = 256
    layers: int = 1
    dropout: float = 0.0  # between layers
    batch: int = 32
    steps: int = 35
    learning_rate: float = 1.0
    clip: float = 1.0  # largest norm of all gradients together
    epochs: int = 500
    characters: int | None = data.MAX_CHARACTERS  # of the text; None: all
    held_out: float = 0.0  # the share of them, at the end, that is not trained on


CONFIG = Config()
CORPORA = {"first": CONFIG, "whole": Config(epochs=15, characters=None, held_out=0.1)}
QUICK = {
    "first": replace(CONFIG, epochs=10),
    "whole": replace(CORPORA["whole"], epochs=2, characters=30_000),
}


class LanguageModel(nn.Module):
    """Logits [T*B, V] of the next character, time first, and the last state."""

    def __init__(self, layer: Layer, vocabulary: int, config: Config) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        stacked = {"num_layers": config.layers, "dropout": config.dropout}
        size = stacked if config.layers > 1 else {}
        self.rnn = layer(vocabulary, config.hidden, **size)
        self.linear = nn.Linear(config.hidden, vocabulary)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        one_hot = F.one_hot(x.t(), self.vocabulary).to(self.linear.weight.dtype)  # [T, B, V]
        output, state = self.rnn(one_hot, state)
        return self.linear(output.flatten(0, 1)), state


def build_model(
    cell: str, impl: str = "fusedrnn", vocabulary: int = 28, config: Config = CONFIG
) -> LanguageModel:
    """The model in its initial state, drawn from torch's global generator."""
    return LanguageModel(layer_class(cell, impl), vocabulary, config)


def build_optimizer(model: nn.Module, config: Config = CONFIG) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=config.learning_rate)


def sequential_batches(tokens: Tensor, B: int, T: int, rng: random.Random) -> Batches:
    """(x, y) each [B, T], y one character ahead; row b of a batch goes on in row b of the next.

    A random start of 0..T characters is left out, so that epochs cut the text differently.
    """
    start = rng.randint(0, T)
    width = (len(tokens) - start - 1) // B
    x, y = (tokens[at : at + B * width].view(B, width) for at in (start, start + 1))
    for at in range(0, width - T + 1, T):
        yield x[:, at : at + T], y[:, at : at + T]


def random_batches(tokens: Tensor, B: int, T: int, rng: random.Random) -> Batches:
    """(x, y) each [B, T], y one character ahead; disjoint subsequences in random order."""
    start = rng.randint(0, T - 1)
    starts = [start + T * i for i in range((len(tokens) - start - 1) // T)]
    rng.shuffle(starts)
    for i in range(0, len(starts) - B + 1, B):
        at = (torch.tensor(starts[i : i + B])[:, None] + torch.arange(T)).to(tokens.device)
        yield tokens[at], tokens[at + 1]


BATCHES = dict(zip(SAMPLINGS, (sequential_batches, random_batches), strict=True))


def batches(
    tokens: Tensor,
    sampling: str = "sequential",
    rng: random.Random | None = None,
    config: Config = CONFIG,
) -> Batches:
    """One epoch of (x, y), each [batch, steps], cut from tokens [N]."""
    return BATCHES[sampling](tokens, config.batch, config.steps, rng or random.Random(0))


def updates(characters: int, B: int, T: int) -> int:
    """How many batches an epoch has, from the middle of the starts that it may have."""
    return (characters - T // 2 - 1) // (B * T)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    state: State | None = None,
    clip: float = CONFIG.clip,
) -> tuple[Tensor, State]:
    """One update on x, y [B, T] from `state` (zeros when None); the mean cross-entropy and the
    state after the last step, both detached."""
    logits, state = model(x, state)
    loss = F.cross_entropy(logits, y.t().flatten())
    return training.step(optimizer, loss, clip), detach(state)


def epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    sampling: str,
    rng: random.Random,
    config: Config,
) -> training.Updates:
    """One epoch of updates; with sequential sampling the state is carried from each to the next."""
    state: State | None = None
    for x, y in batches(tokens, sampling, rng, config):
        carried = state if sampling == "sequential" else None
        loss, state = train_step(model, optimizer, x, y, carried, config.clip)
        yield loss, y.numel()


def detach(state: State) -> State:
    """`state` without its history."""
    return state.detach() if isinstance(state, Tensor) else (state[0].detach(), state[1].detach())


@torch.no_grad()
def generate(model: nn.Module, text: data.Text, prefix: str, count: int = 50) -> str:
    """`prefix` and the `count` characters that `model` finds most likely after it."""
    device = next(model.parameters()).device
    tokens = text.encode(prefix)
    logits, state = model(torch.tensor([tokens], device=device))
    for _ in range(count):
        tokens.append(int(logits[-1].argmax()))
        logits, state = model(torch.tensor([tokens[-1:]], device=device), state)
    return text.decode(tokens)


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor, B: int = CONFIG.batch) -> float:
    """The perplexity of `model` on tokens [N], read as B rows, each from a state of zeros."""
    width = (len(tokens) - 1) // B
    if not width:
        raise WorkloadError(
            f"too little text is held out: expected more than {B} characters, got {len(tokens)}"
        )
    x, y = (tokens[at : at + B * width].view(B, width) for at in (0, 1))
    logits, _ = model(x)
    return math.exp(F.cross_entropy(logits.double(), y.t().flatten()).item())


def new_run(
    corpus: str, cell: str, impl: str, sampling: str, seed: int, text: data.Text, config: Config
) -> training.Run:
    """One training, not begun, on the device of `text`; `corpus`, "first" or "whole", names it."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = build_model(cell, impl, len(text.symbols), config).to(text.tokens.device)
    optimizer = build_optimizer(model, config)
    cut = len(text.tokens) - int(len(text.tokens) * config.held_out)
    tokens, held_out = text.tokens[:cut], text.tokens[cut:]

    score = partial(evaluate, model, held_out, config.batch)
    after = (lambda: {"held_out": score()}) if config.held_out else None
    fields = {"corpus": corpus, "cell": cell, "sampling": sampling}
    one_epoch = partial(epoch, model, optimizer, tokens, sampling, rng, config)
    about = ("time_machine", f"{corpus}-{cell}-{sampling}-seed{seed}", impl, seed)
    sizes = {"data": data.kind(text.source), **asdict(config)}
    own = {"batches": rng}
    run = training.Run(*about, fields, model, optimizer, one_epoch, sizes, own, after)
    run.length = updates(len(tokens), config.batch, config.steps)
    return run

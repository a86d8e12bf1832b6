"""hello: the smallest network that needs a memory, and every step of its learning.

Many to many: after h, e, l, l a layer of 8 units has to say e, l, l, o. The letter l is met twice
and must be answered by l the first time and by o the second, which no map from letter to letter
can do; only the state tells the two apart. The data is the word itself, one update an epoch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.driver import training
from examples.driver.layers import Layer, layer_class

WORD = "hello"
LETTERS = "helo"  # in the order of first appearance


@dataclass(frozen=True)
class Config:
    """The network's size and how it is trained."""

    hidden: int = 8
    learning_rate: float = 0.05
    epochs: int = 200


CONFIG = Config()


class Speller(nn.Module):
    """Logits [T, 4] of the next letter after each of the letters x [T]."""

    def __init__(self, layer: Layer, config: Config) -> None:
        super().__init__()
        self.rnn = layer(len(LETTERS), config.hidden)
        self.linear = nn.Linear(config.hidden, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        one_hot = F.one_hot(x, len(LETTERS)).to(self.linear.weight.dtype)
        output, _ = self.rnn(one_hot[:, None])  # [T, 1, H]: a batch of one word
        logits: Tensor = self.linear(output[:, 0])
        return logits


def encode(text: str) -> Tensor:
    return torch.tensor([LETTERS.index(letter) for letter in text])


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One update on letters x [T] and the next ones y [T]; the mean cross-entropy, detached."""
    return training.step(optimizer, F.cross_entropy(model(x), y))


@torch.no_grad()
def figures(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """What `model` says after each letter of x [T], as ``said_<t>``, its index in LETTERS, and the
    probability it gives the right letter of y [T], as ``right_<t>``."""
    found: dict[str, float] = {}
    for t, (probabilities, target) in enumerate(zip(model(x).softmax(-1).cpu(), y, strict=True)):
        found |= {
            f"said_{t}": int(probabilities.argmax()),
            f"right_{t}": float(probabilities[target]),
        }
    return found


def said(epoch: training.Epoch) -> str:
    """The letters that a model said after `epoch`."""
    return "".join(LETTERS[int(epoch.figures[f"said_{t}"])] for t in range(len(WORD) - 1))


def new_run(cell: str, impl: str, seed: int, config: Config, device: torch.device) -> training.Run:
    """The training of one model, not yet begun."""
    torch.manual_seed(seed)
    model = Speller(layer_class(cell, impl), config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    x, y = encode(WORD[:-1]).to(device), encode(WORD[1:]).to(device)

    after = partial(figures, model, x, y)

    def updates() -> training.Updates:
        yield train_step(model, optimizer, x, y), len(y)

    about = ("hello", f"{cell}-seed{seed}", impl, seed, {"cell": cell})
    return training.Run(*about, model, optimizer, updates, asdict(config), after=after, length=1)

"""The adding problem: a task that a network solves only if it remembers for up to T steps.

A row is T numbers, each between -1/2 and 1/2 with a mark beside it. One number of the first half
and one of the second are marked; after the last step the network is to give their sum (Hochreiter &
Schmidhuber, 1997; the places of the marks as in Arjovsky, Shah & Bengio, 2016). Always saying 0
has a mean squared error of 1/6, remembering the second number alone one of 1/12. The layer is
read at its last step, so that all it learns comes back from there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.driver import training
from examples.driver.layers import Layer, layer_class
from examples.gradient_flow.gates import STARTS, Start, forget_gates, longest_memory

SHOWN_STARTS = ("usual", "forget1", "forget5", "guarded")
FEATURES = 2  # of a step: the number and its mark


@dataclass(frozen=True)
class Config:
    """The task's sizes and how it is trained."""

    steps: int = 200  # T
    hidden: int = 32
    batch: int = 64
    updates: int = 50  # of an epoch; every one has new rows
    held_out: int = 1000  # rows to validate on
    task_seed: int = 0  # of those, which are the same for every --seed
    learning_rate: float = 0.02
    clip: float = 1.0  # largest norm of all gradients together
    epochs: int = 20


CONFIG = Config()
QUICK = replace(CONFIG, steps=50, held_out=300, epochs=5)

Rows = tuple[Tensor, Tensor]  # x [T, B, 2], y [B]


def rows(T: int, B: int, generator: torch.Generator) -> Rows:
    """(x, y): numbers with their marks, time first, and the sum of the two marked numbers."""
    numbers = torch.rand(T, B, generator=generator) - 0.5
    half, row = T // 2, torch.arange(B)
    first = torch.randint(0, half, (B,), generator=generator)
    second = torch.randint(half, T, (B,), generator=generator)
    marks = torch.zeros(T, B)
    marks[first, row] = marks[second, row] = 1.0
    return torch.stack([numbers, marks], -1), numbers[first, row] + numbers[second, row]


class Adder(nn.Module):
    """The sum [B] that a layer's last output says."""

    def __init__(self, layer: Layer, start: Start, hidden: int) -> None:
        super().__init__()
        self.rnn = layer(FEATURES, hidden)
        start.apply(self.rnn)
        self.linear = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.rnn(x)[0])

    def read(self, output: Tensor) -> Tensor:
        """The sum [B] from the outputs [T, B, H]."""
        found: Tensor = self.linear(output[-1])[:, 0]
        return found


@dataclass(frozen=True)
class Data:
    """The rows to validate on, and the error of always saying 0 on them."""

    x: Tensor
    y: Tensor

    @property
    def guessing(self) -> float:
        return float(self.y.square().mean())


def load(config: Config = CONFIG, device: torch.device | str = "cpu") -> Data:
    """The rows of ``config.task_seed``."""
    generator = torch.Generator().manual_seed(config.task_seed)
    x, y = rows(config.steps, config.held_out, generator)
    return Data(x.to(device), y.to(device))


def train_step(
    model: Adder, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, clip: float = CONFIG.clip
) -> Tensor:
    """One update on x [T, B, 2] and its sums y [B]; the mean squared error, detached."""
    return training.step(optimizer, F.mse_loss(model(x), y), clip)


@torch.no_grad()
def figures(model: Adder, data: Data) -> dict[str, float]:
    """The error on held-out rows. Of an LSTM also "memory", how many steps its forget gates let c
    live, and "slope", the mean slope of tanh at c_T: near 0, h_T no longer shows what c holds."""
    output, state = model.rnn(data.x)
    error = {"error": float(F.mse_loss(model.read(output), data.y))}
    if model.rnn.mode != "LSTM":
        return error
    memory = longest_memory(forget_gates(model.rnn, data.x, output))
    return {**error, "memory": memory, "slope": float((1 - state[1].tanh().square()).mean())}


def new_run(
    cell: str, impl: str, start: str, data: Data, config: Config = CONFIG, *, seed: int = 0
) -> training.Run:
    """One training, not begun: its model, updates and figures after each epoch."""
    torch.manual_seed(seed)
    device = data.x.device
    model = Adder(layer_class(cell, impl), STARTS[start], config.hidden).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(10_000 + seed)  # none of the rows to validate on

    def updates() -> training.Updates:
        for _ in range(config.updates):
            x, y = rows(config.steps, config.batch, generator)
            yield train_step(model, optimizer, x.to(device), y.to(device), config.clip), len(y)

    def after() -> dict[str, float]:
        return figures(model, data)

    about = ("memory", f"{cell}-{start}-seed{seed}", impl, seed, {"cell": cell, "start": start})
    generators = {"rows": generator}
    run = training.Run(*about, model, optimizer, updates, asdict(config), generators, after)
    run.length = config.updates
    return run

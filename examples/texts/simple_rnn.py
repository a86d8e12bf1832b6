"""A SimpleRNN of two nn.Linear, beside the layers that it explains, as a course's program.

Each of the two nn.Linear has a bias, as torch's RNN has two; the last output goes through a third.
All learn the next value of a sine from the 20 before it. The mean squared error of an epoch, on the
values that are trained on and on the 200 that follow.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import GRU, LSTM, RNN

COLUMNS = ("layer", "epoch", "loss", "loss on what follows")
T, HIDDEN, BATCH = 20, 32, 32


class SimpleRNN(nn.Module):
    """Output [B, 1] of the last step of x [B, T, I]; h' = tanh(W_x x + b_x + W_h h + b_h)."""

    def __init__(self, inputs: int = 1, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, hidden)
        self.recurrent = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Any:
        h = x.new_zeros(len(x), self.recurrent.out_features)
        for x_t in x.unbind(1):
            h = torch.tanh(self.input(x_t) + self.recurrent(h))
        return self.output(h)


class Layered(nn.Module):
    """The same with a layer in place of the loop."""

    def __init__(self, layer: Any, inputs: int = 1, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.rnn = layer(inputs, hidden, batch_first=True)
        self.output = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Any:
        return self.output(self.rnn(x)[0][:, -1])


MODELS: dict[str, Any] = {
    "SimpleRNN": SimpleRNN,
    "RNN": lambda: Layered(RNN),
    "LSTM": lambda: Layered(LSTM),
    "GRU": lambda: Layered(GRU),
}


def train(epochs: int, limit: int | None, **_: Any) -> Iterator[tuple[Any, ...]]:
    windows = torch.sin(0.1 * torch.arange(1020 + T + 1)).unfold(0, T + 1, 1)  # [1021, T + 1]
    x, y = windows[:, :-1, None], windows[:, -1:]
    end = min(limit or 800, 800)
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model, criterion = build(), nn.MSELoss()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for epoch in range(1, epochs + 1):
            total = 0.0
            for rows in torch.randperm(end).split(BATCH):
                loss = criterion(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            with torch.no_grad():
                after = criterion(model(x[end : end + 200]), y[end : end + 200]).item()
            yield name, epoch, total / end, after

"""SentimentLSTM, as a course's program: is a film review positive? Sigmoid in the model, BCELoss.

Keras' IMDB data, each review its last 200 words, padded in front. After every epoch the mean
training loss and the accuracy on the test reviews.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import LSTM

from examples import data

COLUMNS = ("layer", "epoch", "loss", "accuracy")
T, BATCH = 200, 64


class SentimentLSTM(nn.Module):
    """The chance [B] that reviews x [B, T] are positive; their logits without `sigmoid`."""

    def __init__(self, words: int = 25_000, hidden: int = 64, sigmoid: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 64, padding_idx=0)
        self.lstm = LSTM(64, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, 1)
        self.sigmoid = nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        output, _ = self.lstm(self.embedding(x))
        return self.sigmoid(self.linear(output[:, -1])).squeeze(1)


def train(epochs: int, limit: int | None, **place: Any) -> Iterator[tuple[Any, ...]]:
    reviews = data.imdb(**place)
    x, labels = map(torch.from_numpy, reviews.padded(T))
    y, n = labels.float(), reviews.n_train
    x_train, y_train, x_test, y_test = x[:n][:limit], y[:n][:limit], x[n:][:limit], y[n:][:limit]
    torch.manual_seed(0)
    model, criterion = SentimentLSTM(), nn.BCELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(x_train)).split(BATCH):
            loss = criterion(model(x_train[rows]), y_train[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        with torch.no_grad():
            chances = torch.cat([model(part) for part in x_test.split(256)])
        right = ((chances > 0.5) == (y_test > 0.5)).double().mean().item()
        yield "LSTM", epoch, total / len(x_train), right

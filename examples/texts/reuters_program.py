"""Topics of Reuters newswires by an RNN and an LSTM, as a course's program: one file, one import.

Keras' data, each newswire its last T words. After every epoch the mean training loss, the accuracy
on the test rows, and the RMSE between softmax and one-hot over all test rows and topics.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import LSTM, RNN

from examples import data

LAYERS = {"RNN": RNN, "LSTM": LSTM}
COLUMNS = ("layer", "T", "epoch", "loss", "accuracy", "RMSE")
BATCH, TOPICS = 64, 46


class Classifier(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 128)
        self.rnn = layer(128, 128, num_layers=2, dropout=0.5, batch_first=True)
        self.linear = nn.Linear(128, TOPICS)

    def forward(self, x: Tensor) -> Any:
        output, _ = self.rnn(self.embedding(x))
        return self.linear(output[:, -1])


def train(epochs: int, limit: int | None, **place: Any) -> Iterator[tuple[Any, ...]]:
    newswires = data.reuters(**place)
    for T in (50, 100, 200):
        x, y = map(torch.from_numpy, newswires.padded(T))
        n = newswires.n_train
        x_train, y_train, x_test, y_test = (
            x[:n][:limit],
            y[:n][:limit],
            x[n:][:limit],
            y[n:][:limit],
        )
        for name, layer in LAYERS.items():
            torch.manual_seed(0)
            model, criterion = Classifier(layer), nn.CrossEntropyLoss()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            for epoch in range(1, epochs + 1):
                total = 0.0
                for rows in torch.randperm(len(x_train)).split(BATCH):
                    loss = criterion(model.train()(x_train[rows]), y_train[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(rows)
                with torch.no_grad():
                    chances = torch.cat(
                        [model.eval()(part).softmax(1) for part in x_test.split(256)]
                    )
                right = (chances.argmax(1) == y_test).double().mean().item()
                error = chances - nn.functional.one_hot(y_test, TOPICS)
                rmse = error.square().mean().sqrt().item()
                yield name, T, epoch, total / len(x_train), right, rmse

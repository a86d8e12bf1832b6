"""The texts' programs give the same numbers with either's layers, and nothing but the line that
imports them differs."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
import torch
from torch import nn

import fusedrnn
from examples import data
from examples.driver.errors import WorkloadError
from examples.texts import __main__ as command
from examples.texts import swap

LIMIT = {"reuters_program": 64, "simple_rnn": 200, "sentiment_lstm": 130}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    newswires, reviews = data.synthetic_reuters(400), data.synthetic_imdb(400)
    monkeypatch.setattr(data, "synthetic_reuters", lambda: newswires)
    monkeypatch.setattr(data, "synthetic_imdb", lambda: reviews)


@pytest.mark.parametrize("name", swap.PROGRAMS)
def test_only_the_import_changes(name: str) -> None:
    text = swap.source(name)
    difference = difflib.unified_diff(text.splitlines(), swap.swapped(text).splitlines(), n=0)
    removed, added = [line for line in difference if line[:3] not in ("---", "+++", "@@ ")]
    assert removed.startswith("-from torch.nn import ")
    assert added == removed.replace("-from torch.nn", "+from fusedrnn")


@pytest.mark.parametrize("name", swap.PROGRAMS)
def test_a_program_trains_alike_with_only_the_import_replaced(name: str) -> None:
    torch_rows, rows = (
        [*swap.program(name, impl).train(epochs=2, limit=LIMIT[name], synthetic=True)]
        for impl in ("torch", "fusedrnn")
    )
    columns = swap.program(name, "torch").COLUMNS
    assert {len(row) for row in rows} == {len(columns)}
    assert len({row[: columns.index("epoch")] for row in rows}) == len(rows) / 2
    for ours, theirs in zip(rows, torch_rows, strict=True):
        at = columns.index("epoch") + 1
        assert ours[:at] == theirs[:at]
        assert ours[at:] == pytest.approx(theirs[at:], rel=1e-4)
    assert torch_rows[1][columns.index("loss")] < torch_rows[0][columns.index("loss")]


def test_the_replaced_import_builds_our_layers() -> None:
    def layers(impl: str) -> set[type]:
        reuters = swap.program("reuters_program", impl)
        simple = swap.program("simple_rnn", impl)
        sentiment = swap.program("sentiment_lstm", impl)
        models = [reuters.Classifier(layer).rnn for layer in reuters.LAYERS.values()]
        models += [build().rnn for name, build in simple.MODELS.items() if name != "SimpleRNN"]
        return {type(m) for m in (*models, sentiment.SentimentLSTM(words=9).lstm)}

    assert layers("torch") == {nn.RNN, nn.LSTM, nn.GRU}
    assert layers("fusedrnn") == {fusedrnn.RNN, fusedrnn.LSTM, fusedrnn.GRU}


def test_rmse_and_accuracy_of_the_reuters_program_follow_their_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = swap.program("reuters_program", "torch")
    kept: list[Any] = []

    class Kept(module.Classifier):  # type: ignore[misc, name-defined]
        def __init__(self, layer: Any) -> None:
            super().__init__(layer)
            kept.append(self)

    monkeypatch.setattr(module, "Classifier", Kept)
    monkeypatch.setattr(module, "LAYERS", {"RNN": nn.RNN})
    *_, accuracy, rmse = next(module.train(epochs=1, limit=50, synthetic=True))
    newswires = data.reuters(synthetic=True)
    x, y = map(torch.from_numpy, newswires.padded(50))
    x, y = x[newswires.n_train :][:50], y[newswires.n_train :][:50]
    with torch.no_grad():
        chances = kept[0].eval()(x).softmax(1)
    assert accuracy == (chances.argmax(1) == y).double().mean().item()
    squares = [(chances[i, c] - int(y[i] == c)) ** 2 for i in range(len(y)) for c in range(46)]
    assert rmse == pytest.approx(float(torch.stack(squares).mean() ** 0.5), rel=1e-5)


def test_a_text_without_exactly_one_such_import_is_refused() -> None:
    assert swap.swapped("import torch\nfrom torch.nn import LSTM\n").endswith(
        "fusedrnn import LSTM\n"
    )
    for text in (
        "from torch import nn\n",
        "\nfrom torch.nn import RNN\nfrom torch.nn import GRU\n",
    ):
        with pytest.raises(WorkloadError, match="expected one line"):
            swap.swapped(text)


def test_differences_are_those_of_figures_over_all_epochs() -> None:
    columns = ("layer", "epoch", "loss", "zero")
    found = {
        "torch": [("RNN", 1, 2.0, 0.0), ("RNN", 2, 1.0, 0.0), ("GRU", 1, 1.0, 0.0)],
        "fusedrnn": [("RNN", 1, 2.5, 0.0), ("RNN", 2, 1.0, 0.1), ("GRU", 1, 1.0, 0.0)],
    }
    table = swap.compared(found, columns)
    assert table.rows == [
        ("torch.nn", "RNN", "2", "1.00000", "0.00000", "0e+00"),
        ("fusedrnn", "RNN", "2", "1.00000", "0.10000", "2e-01"),
        ("torch.nn", "GRU", "1", "1.00000", "0.00000", "0e+00"),
        ("fusedrnn", "GRU", "1", "1.00000", "0.00000", "0e+00"),
    ]


def test_the_command_prints_every_epoch_and_the_comparison(capsys: Any) -> None:
    assert command.run(["simple_rnn", "--epochs", "2", "--limit", "64", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert len(out.partition("\n\n")[0].splitlines()) == 2 * 2 * 4
    *rows, last = out.rpartition("\n\n")[2].splitlines()
    assert last.split()[:3] == ["fusedrnn", "GRU", "2"]
    assert all(float(row.split()[-1]) < 1e-4 for row in (*rows[2:], last))


def test_a_missing_corpus_and_an_unknown_program_are_told(capsys: Any) -> None:
    assert command.run(["sentiment_lstm"]) == 1
    assert "found no imdb" in capsys.readouterr().err
    for argv in ([], ["lstm"]):
        assert command.run(argv) == 2
        assert "reuters_program" in capsys.readouterr().err
    assert command.run(["--help"]) == 0

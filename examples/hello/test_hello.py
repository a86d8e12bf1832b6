"""hello: that every cell learns the word, what is shown of it, and that training goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.driver import results, training
from examples.driver.layers import CELLS as NAMES
from examples.driver.layers import IMPLEMENTATIONS as BOTH
from examples.hello import model as hello
from examples.hello.workload import WORKLOAD, learnt

CELLS = pytest.mark.parametrize("cell", NAMES)
IMPLEMENTATIONS = pytest.mark.parametrize("impl", BOTH)


class Fixed(nn.Module):
    """Says the letters of `text` with probability 0.7, each other letter with 0.1."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.logits = torch.full((len(text), 4), 0.1).log()
        self.logits[torch.arange(len(text)), hello.encode(text)] = torch.tensor(0.7).log()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def epoch(says: str, loss: float = 1.0, seconds: float = 1e-3) -> training.Epoch:
    figures = hello.figures(Fixed(says), hello.encode("hell"), hello.encode("ello"))
    return training.Epoch(loss, 4, seconds, figures)


def record(*runs: tuple[str, str, list[str]], seconds: float = 1e-3) -> dict[str, Any]:
    """A JSON record of runs (cell, implementation, what it says epoch by epoch)."""
    entries = []
    for cell, impl, texts in runs:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters())
        about = ("hello", f"{cell}-seed0", impl, 0, {"cell": cell})
        run = training.Run(*about, model, optimizer, lambda: iter([]))
        time = seconds * (2 if impl == "torch" else 1)
        run.history += [epoch(says, seconds=time) for says in texts]
        entries.append(run.record())
    options = {
        "impl": list(dict.fromkeys(impl for _, impl, _ in runs)),
        "cell": list(dict.fromkeys(cell for cell, _, _ in runs)),
        "seed": [0],
        "synthetic": False,
    }
    config = {"hidden": 8, "learning_rate": 0.05, "epochs": len(runs[0][2])}
    return {"options": options, "config": config, "runs": entries}


@IMPLEMENTATIONS
@CELLS
@pytest.mark.parametrize("seed", range(3))
def test_every_cell_learns_to_spell(cell: str, impl: str, seed: int) -> None:
    run = hello.new_run(cell, impl, seed, hello.CONFIG, torch.device("cpu"))
    training.fit([run], 100, lambda *_: None)
    assert run.history[0].loss == pytest.approx(math.log(4), rel=0.1)
    assert hello.said(run.history[-1]) == "ello"
    assert run.history[-1].loss < 0.1
    assert learnt(run.history) is not None


def test_without_its_state_the_network_cannot_tell_the_two_letters_l_apart() -> None:
    run = hello.new_run("rnn", "torch", 0, hello.CONFIG, torch.device("cpu"))
    recurrent = run.model.get_parameter("rnn.weight_hh_l0")
    with torch.no_grad():
        recurrent.zero_()
    recurrent.requires_grad_(False)
    training.fit([run], 100, lambda *_: None)
    after_l = {hello.said(run.history[-1])[t] for t in (2, 3)}
    assert len(after_l) == 1
    assert hello.said(run.history[-1])[:2] == "el"


def test_an_epochs_figures_give_what_is_said_and_how_likely_the_right_letter_was() -> None:
    found = epoch("eloo")
    assert hello.said(found) == "eloo"
    right = [found.figures[f"right_{t}"] for t in range(4)]
    assert right == pytest.approx([0.7, 0.7, 0.1, 0.7])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["llll", "ello", "ello"], 2),
        (["ello", "eloo", "ello"], 3),
        (["ello", "ello", "elll"], None),
        (["ello", "ello", "ello"], 1),
    ],
    ids=["kept", "lost and found", "lost", "at once"],
)
def test_a_word_is_learnt_when_it_is_never_lost_again(
    texts: list[str], expected: int | None
) -> None:
    assert learnt([epoch(text) for text in texts]) == expected


def test_the_summary_says_when_a_cell_did_not_learn() -> None:
    texts = ["llll", "ello", "ello"]
    found = WORKLOAD.summarise(
        record(("gru", "fusedrnn", texts), ("gru", "torch", ["ello", "ello", "elll"]))
    )
    assert [row[2] for row in found.tables[0].rows] == ["2", "never"]
    assert found.remarks == [
        "GRU: 1 of 2 trainings spell the word; after the first l, l has probability 0.699 or more, "
        "after the second, o has 0.099."
    ]
    assert found.headline[0][1:] == ("2", "never", "2.00x")
    assert found.tables[2].rows == [("GRU", "1000", "2000", "2.00x")]


def test_a_run_prints_the_steps_and_writes_what_the_summary_is_made_from(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("hello", "--impl", "fusedrnn", "torch", "--cell", "lstm", "--epochs", "40") == 0
    printed = capsys.readouterr().out
    for impl in ("fusedrnn", "torch.nn"):
        assert f"{impl}: epoch 1  loss " in printed
        last = next(line for line in printed.splitlines() if f"{impl}: epoch 40 " in line)
        assert last.endswith("h -> e, e -> l, l -> l, l -> o")
    found = results.read(tmp_path / "out" / "hello-fusedrnn-torch.jsonl")
    assert WORKLOAD.summarise(found).console() in printed
    assert found["data"] == "hello"

"""hello: that every cell learns the word, what is shown of it, and that training goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from examples.driver import results, training
from examples.hello import model as hello
from examples.hello.workload import WORKLOAD, learnt


def epoch(says: str, seconds: float = 1e-3) -> training.Epoch:
    """That of a model which says these letters with probability 0.7, each other one with 0.1."""
    probabilities = torch.full((4, 4), 0.1)
    probabilities[torch.arange(4), hello.encode(says)] = 0.7
    model = Mock(return_value=probabilities.log())
    figures = hello.figures(model, hello.encode("hell"), hello.encode("ello"))
    return training.Epoch(1.0, 4, seconds, figures)


def record(*runs: tuple[str, str, list[str]]) -> dict[str, Any]:
    """A JSON record of runs (cell, implementation, what it says epoch by epoch)."""
    times = {"fusedrnn": 1e-3, "torch": 2e-3}
    entries = [
        {"cell": cell, "impl": impl, "seed": 0, "epochs": [epoch(t, times[impl]) for t in texts]}
        for cell, impl, texts in runs
    ]
    config = {"hidden": 8, "epochs": len(runs[0][2])}
    return {"options": {"seed": [0]}, "config": config, "runs": entries}


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
    run.model.get_parameter("rnn.weight_hh_l0").requires_grad_(False).zero_()
    training.fit([run], 100, lambda *_: None)
    said = hello.said(run.history[-1])
    assert said[:2] == "el"
    assert said[2] == said[3]


def test_an_epochs_figures_give_what_is_said_and_how_likely_the_right_letter_was() -> None:
    found = epoch("eloo")
    assert hello.said(found) == "eloo"
    right = [found.figures[f"right_{t}"] for t in range(4)]
    assert right == pytest.approx([0.7, 0.7, 0.1, 0.7])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [("llll ello ello", 2), ("ello eloo ello", 3), ("ello ello elll", None), ("ello ello ello", 1)],
    ids=["kept", "lost and found", "lost", "at once"],
)
def test_a_word_is_learnt_when_it_is_never_lost_again(texts: str, expected: int | None) -> None:
    assert learnt([epoch(text) for text in texts.split()]) == expected


def test_the_summary_says_when_a_cell_did_not_learn() -> None:
    runs = {"fusedrnn": ["llll", "ello", "ello"], "torch": ["ello", "ello", "elll"]}
    found = WORKLOAD.summarise(record(*(("gru", impl, texts) for impl, texts in runs.items())))
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
    found = results.read(tmp_path / "out" / "hello-fusedrnn-torch-lstm-epochs40.jsonl")
    assert WORKLOAD.summarise(found).console() in printed
    assert found["data"] == "hello"

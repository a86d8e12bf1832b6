"""The adding problem: its rows, what is learnt, and remarks that say no more than the figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from examples.driver import training
from examples.driver.layers import layer_class
from examples.gradient_flow.gates import STARTS
from examples.memory import model as memory
from examples.memory.model import Adder, Config, load, new_run, rows
from examples.memory.workload import WORKLOAD, learnt


@pytest.mark.parametrize("T", [2, 3, 20, 201])
def test_a_row_has_a_mark_in_each_half_and_the_sum_of_both_numbers(T: int) -> None:
    x, y = rows(T, 500, torch.Generator().manual_seed(0))
    assert x.shape == (T, 500, 2)
    numbers, marks = x.unbind(-1)
    assert numbers.abs().max() <= 0.5
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    half = T // 2
    assert (marks[:half].sum(0) == 1).all()
    assert (marks[half:].sum(0) == 1).all()
    torch.testing.assert_close((numbers * marks).sum(0), y)
    places = marks.nonzero()[:, 0].unique()
    assert len(places) > 0.9 * T  # of 500 rows


def test_guessing_has_the_variance_of_the_sum_and_the_second_number_alone_half_of_it() -> None:
    data = load(Config(steps=10, held_out=50_000))
    assert data.guessing == pytest.approx(1 / 6, rel=0.02)
    second = (data.x[5:, :, 0] * data.x[5:, :, 1]).sum(0)
    assert float((data.y - second).square().mean()) == pytest.approx(1 / 12, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_no_seed_is_trained_on_the_rows_it_is_validated_on(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(steps=4, held_out=8, batch=8, updates=3)
    seen: list[torch.Tensor] = []

    def train_step(model: Adder, optimizer: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.append(x)
        return torch.tensor(0.0)

    monkeypatch.setattr(memory, "train_step", train_step)
    data = load(config)
    run = new_run("rnn", "torch", "usual", data, config, seed=seed)
    assert [count for _, count in run.updates()] == [8] * 3
    assert all(not torch.equal(a, b) for a, b in zip(seen, [data.x, *seen], strict=False))


def test_the_layer_is_read_at_its_last_step_alone(impl: str, cell: str) -> None:
    model = Adder(layer_class(cell, impl), STARTS["usual"], 4)
    x = torch.randn(6, 3, 2)
    output, _ = model.rnn(x)
    expected = output[-1] @ model.linear.weight[0] + model.linear.bias
    torch.testing.assert_close(model(x), expected)


def test_a_guarded_lstm_learns_in_both_implementations_what_an_rnn_does_not(impl: str) -> None:
    config = Config(steps=30, hidden=16, batch=32, held_out=200)
    data = load(config)
    errors = {}
    for cell, start in (("rnn", "usual"), ("lstm", "guarded")):
        run = new_run(cell, impl, start, data, config)
        training.fit([run], 6, lambda *_: None)
        errors[start] = run.history[-1]["error"]
        assert ("memory" in run.history[-1].figures) == (cell == "lstm")
    assert errors["guarded"] < 0.1 * data.guessing
    assert errors["usual"] > 0.3 * data.guessing


def test_an_open_forget_gate_fills_c_and_a_closed_input_gate_guards_it(impl: str) -> None:
    data = load(Config(held_out=100))
    found = {}
    for start in memory.SHOWN_STARTS:
        run = new_run("lstm", impl, start, data)
        assert isinstance(run.model, Adder)
        found[start] = memory.figures(run.model, data)
    lives = [found[start]["memory"] for start in ("usual", "forget1", "forget5")]
    assert lives[0] < 3 < lives[1] < 6 < 100 < lives[2]
    assert found["forget5"]["slope"] < 0.5 < 0.9 < found["guarded"]["slope"]
    assert found["guarded"]["memory"] > 100


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.2, 0.01, 0.01], 100),
        ([0.01, 0.2, 0.01], 150),
        ([0.01, 0.01, 0.2], None),
        ([0.01, 0.01, 0.01], 50),
        ([0.021, 0.021, 0.021], None),
    ],
)
def test_it_is_learnt_where_the_error_stays_below_a_tenth_of_guessing(
    errors: list[float], expected: int | None
) -> None:
    history = [training.Epoch(e, 1, 1.0, {"error": e}) for e in errors]
    assert learnt(history, 0.2, 50) == expected


def made_up(**when: list[int]) -> dict[str, Any]:
    """A record of 4 epochs of 50 updates: by model, the epoch in which each seed learns."""
    runs, initial = [], []
    for name, epochs in when.items():
        cell, _, start = name.partition("_")
        for seed, epoch in enumerate(epochs):
            about = {"cell": cell, "start": start or "usual", "seed": seed, "impl": "torch"}
            history = []
            for number in range(1, 5):
                error = 0.001 if number >= epoch else 0.16
                lives = 40.0 if number >= epoch else 3.0
                figures = {"error": error, "memory": lives, "slope": 0.5}
                history.append(training.Epoch(error, 64, 1.0, figures))
            runs.append({"name": f"{name}-seed{seed}", **about, "epochs": history})
            initial.append({**about, "error": 0.2, "memory": 2.0, "slope": 0.9})
    config = {"steps": 100, "updates": 50, "epochs": 4}
    options = {"impl": ["torch"], "seed": [*range(len(epochs))]}
    facts = {"config": config, "options": options, "guessing": 0.16}
    return {**facts, "runs": runs, "initial": initial}


def test_where_nothing_was_learnt_nothing_is_concluded() -> None:
    found = WORKLOAD.summarise(made_up(rnn=[9, 9], lstm=[9, 9], lstm_forget1=[9, 9]))
    said = "No model learnt the task within 200 updates: these figures do not tell them apart."
    assert found.remarks == [said]
    assert [row[2] for row in found.tables[0].rows] == ["never, never"] * 3


def test_remarks_count_who_learnt_and_compare_only_where_all_did() -> None:
    record = made_up(rnn=[9, 9], lstm=[4, 4], lstm_forget1=[2, 2], lstm_forget5=[3, 9])
    found = WORKLOAD.summarise(record)
    total = "trainings learnt the task within 200 updates"
    assert found.remarks == [
        f"RNN: 0 of 2 {total}.",
        f"LSTM: 2 of 2 {total}, after 200 updates on average.",
        f"LSTM, forget bias 1: 2 of 2 {total}, after 100 updates on average.",
        f"LSTM, forget bias 5: 1 of 2 {total}, after 150 updates on average.",
        "LSTM, forget bias 1 needs 0.50 times the updates of an LSTM as torch.nn draws it.",
        "LSTM: training opened a forget gate; c of the unit that forgets least falls to 1/e in "
        "40 steps, at first in 2.",
        "LSTM, forget bias 1: training opened a forget gate; c of the unit that forgets least "
        "falls to 1/e in 40 steps, at first in 2.",
    ]
    learnt = [row[2] for row in found.tables[0].rows]
    assert learnt == ["never, never", "200, 200", "100, 100", "150, never"]
    assert len(found.headline) == 2
    assert "RNN: error after 200 updates" in found.headline[0][0]
    assert "LSTM, forget bias 1: error" in found.headline[1][0]


def test_pictures_have_guessing_and_at_most_six_lines() -> None:
    record = made_up(
        rnn=[9, 9],
        gru=[1, 2],
        lstm=[4, 4],
        lstm_forget1=[2, 2],
        lstm_forget5=[3, 9],
        lstm_guarded=[1, 1],
    )
    who, gates = WORKLOAD.draw(record)
    names = ["RNN", "GRU", "LSTM", "LSTM, forget bias 1", "LSTM, forget bias 5", "guessing"]
    assert [*who.series] == names
    assert [*gates.series] == [*names[2:5], "LSTM, forget bias 5, input bias -5", "guessing"]
    assert who.series["guessing"] == ([50, 100, 150, 200], [0.16] * 4)
    assert who.errors["GRU"] == pytest.approx([0.1124, 0, 0, 0], rel=1e-3)
    assert "guessing" not in who.errors


@pytest.mark.parametrize("steps", ["1", "0", "-3"])
def test_a_row_without_two_halves_is_refused(steps: str, fails: Any) -> None:
    assert "argument --steps" in fails("memory", f"--steps={steps}", status=2)

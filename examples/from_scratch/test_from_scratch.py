"""From scratch: equal weights and batches for all, and what the record says of losses and times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from examples import data
from examples.driver.layers import IMPLEMENTATIONS, count_parameters
from examples.driver.training import Epoch
from examples.from_scratch import model as from_scratch
from examples.from_scratch.workload import WORKLOAD, compared_losses, drift
from examples.from_scratch.written_out import WrittenOut, layer_state
from examples.time_machine import model as time_machine

CONFIG = replace(from_scratch.CONFIG, hidden=12, batch=4, steps=9)
TEXT = data.synthetic_text(500)  # 13 updates an epoch
ALL = ("scratch", *IMPLEMENTATIONS)


def made_up(
    seconds: dict[str, float], later: dict[str, list[float]], double: float = 0.0
) -> dict[str, Any]:
    """A record of one LSTM: seconds and losses of the epochs by implementation, float64 losses of
    the layers a share `double` from the written-out cell's."""
    single = {impl: [2.0 * (1 + 1e-7 * (impl != "scratch")), 1.0] for impl in seconds}
    exact = {impl: [2.0, 1.0 + double * (impl != "scratch")] for impl in seconds}
    tensors = {name: list(p.shape) for name, p in WrittenOut("lstm", 28, 12).named_parameters()}
    about = {"cell": "lstm", "seed": 0, "tensors": tensors, "count": 2}
    first = {"float32": single, "float64": exact}
    epochs = {
        impl: [Epoch(loss, 8, time) for loss in later[impl]] for impl, time in seconds.items()
    }
    return {
        "options": {"impl": [i for i in seconds if i != "scratch"], "seed": [0]},
        "config": {"hidden": 12, "batch": 4, "steps": 9, "epochs": len(later["scratch"])},
        "compared": [about | compared_losses(dtype, losses) for dtype, losses in first.items()],
        "runs": [
            {"cell": "lstm", "impl": impl, "seed": 0, "epochs": history}
            | ({} if impl == "scratch" else {"drift": drift(history, epochs["scratch"])})
            for impl, history in epochs.items()
        ],
    }


SECONDS = {"scratch": 0.6, "fusedrnn": 0.2, "torch": 0.3}
TOGETHER = {impl: [2.0, 1.0, 0.5] for impl in ALL}


def test_first_losses_are_the_same_for_equal_weights(cell: str) -> None:
    models = from_scratch.build_models(cell, IMPLEMENTATIONS, 28, CONFIG)
    scratch = WrittenOut(cell, 28, CONFIG.hidden)
    with torch.no_grad():  # a deviation of a hundredth is too little for the recurrence to show
        for p in scratch.parameters():
            p.normal_(0.0, 0.2)
    models["scratch"] = scratch
    for impl in IMPLEMENTATIONS:
        models[impl].load_state_dict(layer_state(scratch))
    found = from_scratch.compare(models, TEXT.tokens, CONFIG, seed=0, count=20)
    for dtype, rel in (("float32", 1e-4), ("float64", 1e-9)):
        expected = found[dtype]["scratch"]
        assert len(set(expected)) == 20
        for impl in IMPLEMENTATIONS:
            assert found[dtype][impl] == pytest.approx(expected, rel=rel)


def test_models_are_built_with_the_weights_of_the_written_out_one() -> None:
    models = from_scratch.build_models("gru", IMPLEMENTATIONS, 28, CONFIG)
    x = torch.randint(28, (CONFIG.batch, CONFIG.steps))
    expected = models["scratch"](x)[0]
    for impl in IMPLEMENTATIONS:
        torch.testing.assert_close(models[impl](x)[0], expected)
        trained = sum(p.requires_grad for p in models[impl].parameters())
        assert trained == 5  # of weight_ih, weight_hh and both biases, and linear's two
        assert count_parameters(models[impl]) == count_parameters(models["scratch"])


def test_comparing_leaves_the_models_as_they_were() -> None:
    models = from_scratch.build_models("rnn", ["torch"], 28, CONFIG)
    before = {impl: [p.clone() for p in m.parameters()] for impl, m in models.items()}
    from_scratch.compare(models, TEXT.tokens, CONFIG, seed=0, count=2)
    for impl, model in models.items():
        assert all(map(torch.equal, model.parameters(), before[impl]))


def losses(found: dict[str, Any]) -> dict[str, list[float]]:
    return {r["impl"]: [epoch.loss for epoch in r["epochs"]] for r in found["runs"]}


def test_all_are_trained_on_the_same_batches_whatever_is_beside_them(record: Any) -> None:
    both = losses(record("from_scratch", "--cell", "lstm", "--impl", "fusedrnn", "torch"))
    assert set(both) == set(ALL)
    for found in both.values():
        assert len(found) == 3
        assert found == pytest.approx(both["scratch"], rel=1e-4)
    alone = losses(record("from_scratch", "--cell", "lstm", "--impl", "torch"))
    assert set(alone) == {"scratch", "torch"}
    assert alone["torch"] == both["torch"]


def test_a_run_names_the_tensors_and_compares_as_many_updates_as_it_says(
    record: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--quick", "--epochs=2", "--cell", "rnn", "lstm", "--seed", "1", "2")
    found = record("from_scratch", *options)
    assert "in 14 tensors: W_xi [28, 12], W_hi [12, 12], b_i [12]," in capsys.readouterr().out
    assert [(r["cell"], r["impl"], r["seed"]) for r in found["runs"]] == [
        (cell, impl, seed)
        for cell in ("rnn", "lstm")
        for seed in (1, 2)
        for impl in ("scratch", "fusedrnn")
    ]
    assert {c["count"] for c in found["compared"]} == {8}
    for entry in found["compared"]:
        assert 0 <= entry["apart"]["fusedrnn"] < {"float32": 1e-4, "float64": 1e-9}[entry["dtype"]]


def test_too_short_a_text_is_an_error(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(TEXT, tokens=TEXT.tokens[:30])
    monkeypatch.setattr(data, "synthetic_text", lambda *_: short)
    error = fails("from_scratch", "--synthetic", "--cell", "rnn", "--impl", "torch")
    assert "too little data for one batch" in error


@pytest.mark.parametrize(
    ("double", "verdict"),
    [(1e-15, "rounding, not another formula"), (1e-6, "the two do not compute the same")],
)
def test_losses_apart_in_float64_are_not_called_rounding(double: float, verdict: str) -> None:
    found = WORKLOAD.summarise(made_up(SECONDS, TOGETHER, double))
    assert found.remarks[1].endswith(f"{verdict}.")
    assert found.tables[1].rows[0] == ("LSTM", "float32", "2.000000", "1.000000", *["1.0e-07"] * 2)


@pytest.mark.parametrize(
    ("last", "expected"), [(0.5001, "for all 3 epochs"), (0.51, "for 2 epochs")]
)
def test_the_summary_says_how_long_losses_stay_together(last: float, expected: str) -> None:
    later = TOGETHER | {"torch": [2.0, 1.0, last]}
    assert WORKLOAD.summarise(made_up(SECONDS, later)).remarks[2].endswith(f"{expected}.")


def test_the_task_is_that_of_time_machine() -> None:
    assert replace(from_scratch.CONFIG, epochs=time_machine.CONFIG.epochs) == time_machine.CONFIG

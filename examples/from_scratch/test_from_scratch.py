"""From scratch: the written-out cells' tensors, that a layer of the same weights is the same, equal
batches for all, and what the record says of losses and times."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from examples import data
from examples.driver.errors import WorkloadError
from examples.driver.layers import IMPLEMENTATIONS, State, count_parameters
from examples.driver.training import Epoch
from examples.from_scratch import model as from_scratch
from examples.from_scratch.model import layers_of
from examples.from_scratch.workload import WORKLOAD, compared_losses, drift
from examples.from_scratch.written_out import (
    WrittenOut,
    freeze,
    layer_state,
    load_layer_state,
)
from examples.time_machine import model as time_machine

CONFIG = replace(from_scratch.CONFIG, hidden=12, batch=4, steps=9)
V = 28
TEXT = data.synthetic_text(500)  # 13 updates an epoch
ALL = ("scratch", *IMPLEMENTATIONS)


def made_up(last: float = 0.5, double: float = 0.0) -> dict[str, Any]:
    """A record of one LSTM whose layers' float64 losses are a share `double` from the written-out
    cell's, and whose last epoch of torch.nn has the loss `last`, 0.5 elsewhere."""
    single = {impl: [2.0 * (1 + 1e-7 * (impl != "scratch")), 1.0] for impl in ALL}
    exact = {impl: [2.0, 1.0 + double * (impl != "scratch")] for impl in ALL}
    tensors = {name: list(p.shape) for name, p in WrittenOut("lstm", 28, 12).named_parameters()}
    about = {"cell": "lstm", "seed": 0, "tensors": tensors, "count": 2}
    first = {"float32": single, "float64": exact}
    runs: list[dict[str, Any]] = []
    for impl, seconds in (("scratch", 0.6), ("fusedrnn", 0.2), ("torch", 0.3)):
        ends = (2.0, 1.0, last if impl == "torch" else 0.5)
        history = [Epoch(loss, 8, seconds) for loss in ends]
        about_run = {"cell": "lstm", "impl": impl, "seed": 0, "text": "time traveller the"}
        runs.append({**about_run, "epochs": history})
        if impl != "scratch":
            runs[-1]["drift"] = drift(history, runs[0]["epochs"])
    return {
        "options": {"impl": list(IMPLEMENTATIONS), "seed": [0]},
        "config": {"hidden": 12, "batch": 4, "steps": 9, "epochs": 3},
        "untrained": [{"cell": "rnn", "seed": 0, "text": "time traveller xx"}],
        "one_hot": [{"symbol": "t", "vector": [0, 1]}],
        "compared": [about | compared_losses(dtype, losses) for dtype, losses in first.items()],
        "runs": runs,
    }


def test_first_losses_are_the_same_for_equal_weights(cell: str) -> None:
    scratch = written_out(cell).float()
    models = {"scratch": scratch, **{i: layers_of(scratch, i, CONFIG) for i in IMPLEMENTATIONS}}
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
    expected = product(("rnn", "lstm"), (1, 2), ("scratch", "fusedrnn"))
    assert [(r["cell"], r["seed"], r["impl"]) for r in found["runs"]] == list(expected)
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
    found = WORKLOAD.summarise(made_up(double=double))
    assert found.remarks[1].endswith(f"{verdict}.")
    assert found.tables[1].rows[0] == ("LSTM", "float32", "2.000000", "1.000000", *["1.0e-07"] * 2)


@pytest.mark.parametrize(("last", "expected"), [(0.5001, "all 3 epochs"), (0.51, "2 epochs")])
def test_the_summary_says_how_long_losses_stay_together(last: float, expected: str) -> None:
    assert WORKLOAD.summarise(made_up(last)).remarks[2].endswith(f"for {expected}.")


def test_the_task_is_that_of_time_machine() -> None:
    assert replace(from_scratch.CONFIG, epochs=time_machine.CONFIG.epochs) == time_machine.CONFIG


def written_out(cell: str) -> WrittenOut:
    """A model with every tensor drawn, the biases too: a bias gone astray shows."""
    torch.manual_seed(0)
    model = WrittenOut(cell, V, CONFIG.hidden).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.2)  # larger, and the RNN would amplify rounding
    return model


def states(state: State) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


def test_the_lstm_handles_sixteen_tensors_of_which_fourteen_are_trained() -> None:
    model = WrittenOut("lstm", V, 256)
    assert len(list(model.parameters())) == 14
    H, C = model.initial_states(32)
    assert torch.equal(H, torch.zeros(32, 256))
    assert torch.equal(C, H)


@pytest.mark.parametrize(("cell", "gates"), [("rnn", "h"), ("gru", "rzh"), ("lstm", "ifco")])
def test_every_gate_has_its_own_tensors_in_the_layers_order(cell: str, gates: str) -> None:
    expected = [f"{part}{gate}" for gate in gates for part in ("W_x", "W_h", "b_")]
    names = [name for name, _ in WrittenOut(cell, V, 256).named_parameters()]
    assert names == [*expected, "W_hq", "b_q"]


def test_weights_are_gaussian_of_a_hundredth_and_biases_zero(cell: str) -> None:
    for name, p in WrittenOut(cell, V, 256).named_parameters():
        if name.startswith("b_"):
            assert not p.any()
        else:
            assert p.std().item() == pytest.approx(0.01, rel=0.05)
            assert p.mean().abs() < 0.001


def test_a_layer_with_the_same_weights_gives_the_same_logits_and_states(
    cell: str, impl: str
) -> None:
    model = written_out(cell)
    layers = layers_of(model, impl, CONFIG)
    x = torch.randint(V, (CONFIG.batch, CONFIG.steps))
    ours, theirs = None, None
    for _ in range(2):  # the second time from the state of the first
        logits, ours = model(x, ours)
        expected, theirs = layers(x, theirs)
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
        for a, b in zip(states(ours), states(theirs), strict=True):
            torch.testing.assert_close(a, b.squeeze(0), rtol=1e-10, atol=1e-12)


def test_updates_keep_the_written_out_cell_and_the_layer_together(cell: str, impl: str) -> None:
    model = written_out(cell)
    layers = layers_of(model, impl, CONFIG)
    losses = []
    for trained in (layers, model):
        optimizer = time_machine.build_optimizer(trained, CONFIG)
        about = (trained, optimizer, TEXT.tokens, "sequential")
        updates = time_machine.epoch(*about, random.Random(0), CONFIG)
        losses.append([loss.item() for loss, _ in updates])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert len(set(losses[0])) == len(losses[0]) > 10
    torch.testing.assert_close(dict(layers.state_dict()), layer_state(model), rtol=1e-7, atol=1e-9)


def test_weights_come_back_from_a_layer(cell: str) -> None:
    model = written_out(cell)
    copy = WrittenOut(cell, V, CONFIG.hidden).double()
    load_layer_state(copy, layers_of(model, "torch", CONFIG).state_dict())
    torch.testing.assert_close(copy.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_layers_two_biases_come_back_as_their_sum(cell: str) -> None:
    layers = time_machine.build_model(cell, "torch", V, CONFIG).double()
    if cell == "gru":
        with torch.no_grad():
            layers.get_parameter("rnn.bias_hh_l0")[2 * CONFIG.hidden :] = 0
    model = WrittenOut(cell, V, CONFIG.hidden).double()
    load_layer_state(model, layers.state_dict())
    x = torch.randint(V, (CONFIG.batch, CONFIG.steps))
    torch.testing.assert_close(model(x)[0], layers(x)[0], rtol=1e-10, atol=1e-12)


def test_a_gru_whose_second_bias_reaches_its_candidate_is_refused() -> None:
    layers = time_machine.build_model("gru", "torch", V, CONFIG)
    with pytest.raises(WorkloadError, match=r"must be zero in its last third .* got values up to"):
        load_layer_state(WrittenOut("gru", V, CONFIG.hidden), layers.state_dict())


def test_loading_leaves_the_two_models_apart(cell: str) -> None:
    model = written_out(cell)
    before = {name: tensor.clone() for name, tensor in layer_state(model).items()}
    layers_of(model, "torch", CONFIG).linear.weight.data.zero_()
    torch.testing.assert_close(layer_state(model), before, rtol=0, atol=0)


def test_a_frozen_bias_is_neither_drawn_nor_trained(impl: str) -> None:
    model = time_machine.build_model("lstm", impl, V, CONFIG)
    bias = model.get_parameter("rnn.bias_hh_l0")
    assert bias.any()
    freeze(model)
    assert not bias.any()
    expected = 4 * CONFIG.hidden * (V + CONFIG.hidden + 1) + V * (CONFIG.hidden + 1)
    assert count_parameters(model) == expected
    assert count_parameters(WrittenOut("lstm", V, CONFIG.hidden)) == expected

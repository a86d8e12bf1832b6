"""The written-out cells: their tensors, and that a layer with the same weights is the same."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from examples import data
from examples.driver.errors import WorkloadError
from examples.driver.layers import State, count_parameters
from examples.from_scratch.written_out import (
    GATES,
    WrittenOut,
    freeze,
    layer_state,
    load_layer_state,
)
from examples.time_machine import model as time_machine

CONFIG = time_machine.Config(hidden=12, batch=4, steps=9)
V = 28


def written_out(cell: str) -> WrittenOut:
    """A model with every tensor drawn, the biases too: a bias gone astray shows."""
    torch.manual_seed(0)
    model = WrittenOut(cell, V, CONFIG.hidden).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.2)  # larger, and the RNN would amplify rounding
    return model


def of_layers(model: WrittenOut, impl: str) -> time_machine.LanguageModel:
    """The language model of `impl` with the weights of `model`."""
    layers = time_machine.build_model(model.cell, impl, V, CONFIG).double()
    layers.load_state_dict(layer_state(model))
    freeze(layers)
    return layers


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
    layers = of_layers(model, impl)
    x = torch.randint(V, (CONFIG.batch, CONFIG.steps))
    ours, theirs = None, None
    for _ in range(2):  # the second time from the state of the first
        logits, ours = model(x, ours)
        expected, theirs = layers(x, theirs)
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
        for a, b in zip(states(ours), states(theirs), strict=True):
            torch.testing.assert_close(a, b.squeeze(0), rtol=1e-10, atol=1e-12)


def test_updates_keep_the_written_out_cell_and_the_layer_together(cell: str, impl: str) -> None:
    tokens = data.synthetic_text(500).tokens
    model = written_out(cell)
    layers = of_layers(model, impl)
    losses = []
    for trained in (layers, model):
        optimizer = time_machine.build_optimizer(trained, CONFIG)
        about = (trained, optimizer, tokens, "sequential")
        updates = time_machine.epoch(*about, random.Random(0), CONFIG)
        losses.append([loss.item() for loss, _ in updates])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert len(set(losses[0])) == len(losses[0]) > 10
    torch.testing.assert_close(dict(layers.state_dict()), layer_state(model), rtol=1e-7, atol=1e-9)


def test_weights_come_back_from_a_layer(cell: str) -> None:
    model = written_out(cell)
    copy = WrittenOut(cell, V, CONFIG.hidden).double()
    load_layer_state(copy, of_layers(model, "torch").state_dict())
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
    of_layers(model, "torch").linear.weight.data.zero_()
    torch.testing.assert_close(layer_state(model), before, rtol=0, atol=0)


def test_a_frozen_bias_is_neither_drawn_nor_trained(impl: str) -> None:
    model = time_machine.build_model("lstm", impl, V, CONFIG)
    bias = model.get_parameter("rnn.bias_hh_l0")
    assert bias.any()
    freeze(model)
    gates = len(GATES["lstm"])
    assert not bias.any()
    expected = gates * CONFIG.hidden * (V + CONFIG.hidden + 1) + V * (CONFIG.hidden + 1)
    assert count_parameters(model) == expected
    assert count_parameters(WrittenOut("lstm", V, CONFIG.hidden)) == expected

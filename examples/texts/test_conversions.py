"""Conversions: what is exact is, what cannot be is not, and the written-out GRU is each text's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from examples import data
from examples.texts import __main__ as command
from examples.texts import conversions
from examples.texts.gru import GRU, negated, reset_after
from examples.texts.swap import program
from examples.time_machine import model as time_machine

INPUTS, H = 3, 5


def drawn(gru: GRU) -> GRU:
    """With weights of deviation 1, in float64, so that gates are anywhere and rounding is small."""
    with torch.no_grad():
        for parameter in gru.double().parameters():
            parameter.normal_()
    return gru


def by_hand(gru: GRU, x: Tensor, h: Tensor) -> Tensor:
    """One step of one row, unit by unit, from the formulas of `gru`."""
    w, u, b, b_u = (p.detach().unflatten(0, (3, H)) for p in gru.parameters())
    r, z = (torch.sigmoid(w[i] @ x + b[i] + u[i] @ h + b_u[i]) for i in (0, 1))
    found = []
    for i in range(H):
        if gru.reset_before:
            inner = sum(u[2, i, j] * (r[j] * h[j]) for j in range(H)) + b_u[2, i]
        else:
            inner = r[i] * (sum(u[2, i, j] * h[j] for j in range(H)) + b_u[2, i])
        n = torch.tanh(w[2, i] @ x + b[2, i] + inner)
        found.append(z[i] * h[i] + (1 - z[i]) * n if gru.z_keeps else (1 - z[i]) * h[i] + z[i] * n)
    return torch.stack(found)


@pytest.mark.parametrize("reset_before", [False, True])
@pytest.mark.parametrize("z_keeps", [False, True])
def test_the_written_out_gru_is_each_conventions(reset_before: bool, z_keeps: bool) -> None:
    gru = drawn(GRU(INPUTS, H, reset_before=reset_before, z_keeps=z_keeps))
    x, h = torch.randn(4, 2, INPUTS).double(), torch.randn(1, 2, H).double()
    output, last = gru(x, h)
    expected = h[0]
    for t in range(4):
        expected = torch.stack([by_hand(gru, *row) for row in zip(x[t], expected, strict=True)])
        torch.testing.assert_close(output[t], expected)
    assert torch.equal(last[0], output[-1])
    torch.testing.assert_close(gru(x)[0], gru(x, torch.zeros_like(h))[0], rtol=0, atol=0)


@pytest.mark.parametrize("namespace", [fusedrnn, nn])
def test_it_is_the_layer_where_z_keeps_and_the_reset_comes_after(namespace: Any) -> None:
    gru = drawn(GRU(INPUTS, H, reset_before=False))
    layer = namespace.GRU(INPUTS, H).double()
    layer.load_state_dict(gru.state_dict())
    x, h = torch.randn(4, 2, INPUTS).double(), torch.randn(1, 2, H).double()
    torch.testing.assert_close(layer(x, h), gru(x, h))


def test_a_simple_rnn_and_an_rnn_compute_and_learn_the_same() -> None:
    simple = program("simple_rnn", "torch").SimpleRNN(INPUTS, H)
    rnn = fusedrnn.RNN(INPUTS, H, batch_first=True)
    rnn.load_state_dict(conversions.of_simple_rnn(simple.state_dict()))
    x = torch.randn(4, 7, INPUTS)
    expected, ours = simple(x), simple.output(rnn(x)[0][:, -1])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    slopes = torch.autograd.grad(ours.sum(), [*rnn.parameters()])
    named = conversions.of_simple_rnn(dict(simple.named_parameters()))
    theirs = torch.autograd.grad(
        expected.sum(), [named[name] for name, _ in rnn.named_parameters()]
    )
    torch.testing.assert_close(slopes, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_negating_gate_z_exchanges_the_conventions_and_twice_gives_the_same_bits(
    layers: int,
) -> None:
    layer = fusedrnn.GRU(INPUTS, H, layers, bidirectional=layers == 2)
    weights = layer.state_dict()
    once = negated(weights)
    for name, tensor in weights.items():
        assert torch.equal(once[name][:H], tensor[:H])
        assert torch.equal(once[name][H : 2 * H], -tensor[H : 2 * H])
        assert torch.equal(once[name][2 * H :], tensor[2 * H :])
        assert torch.equal(negated(once)[name], tensor)
    if layers == 1:
        gru = GRU(INPUTS, H, reset_before=False, z_keeps=False)
        gru.load_state_dict(once)
        x = torch.randn(6, 2, INPUTS)
        torch.testing.assert_close(layer(x), gru(x), rtol=1e-5, atol=1e-6)


def test_the_reset_commutes_with_a_diagonal_u_and_with_no_other() -> None:
    x = torch.randn(6, 2, INPUTS).double()
    for diagonal in (True, False):
        gru = drawn(GRU(INPUTS, H))
        if diagonal:
            conversions.diagonal(gru)
        layer = fusedrnn.GRU(INPUTS, H).double()
        layer.load_state_dict(reset_after(gru.state_dict()))
        apart = (layer(x)[0] - gru(x)[0]).abs().max()
        assert apart < 1e-12 if diagonal else apart > 0.1


def test_one_reset_for_all_units_commutes_and_a_constant_one_is_scaled() -> None:
    x = torch.randn(6, 2, INPUTS).double()
    gru = drawn(GRU(INPUTS, H))
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter[:H] = parameter[0].clone()
    layer = fusedrnn.GRU(INPUTS, H).double()
    layer.load_state_dict(reset_after(gru.state_dict()))
    torch.testing.assert_close(layer(x)[0], gru(x)[0])

    gru = drawn(GRU(INPUTS, H))
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            gru.get_parameter(name)[:H] = 0
    weights = reset_after(gru.state_dict())
    r = (weights["bias_ih_l0"] + weights["bias_hh_l0"])[:H].sigmoid()
    u_n = weights["weight_hh_l0"][2 * H :]
    u_n.copy_(u_n * r / r[:, None])
    layer.load_state_dict(weights)
    torch.testing.assert_close(layer(x)[0], gru(x)[0])


def test_the_proofs_example_is_not_reached_and_its_diagonal_twin_is() -> None:
    same, best = conversions.best_fit(conversions.two_units(mixed=True), 150)
    assert same > best > 0.05
    same, best = conversions.best_fit(conversions.two_units(mixed=False), 150)
    assert same < 1e-12
    assert best < 2e-3


def test_the_steps_of_the_proof_hold() -> None:
    gru = conversions.two_units(mixed=True)
    x = torch.randn(1, 9, 2).double()
    zero = torch.zeros(1, 9, 2).double().requires_grad_()
    after = gru(x, zero)[1][0]
    assert not after.any()
    (slopes,) = torch.autograd.grad(after[:, 0].sum(), zero)
    expected = 0.5 * torch.sigmoid(2 * x[0]) + 0.5 * torch.tensor([1.0, 0.0]).double()
    torch.testing.assert_close(slopes[0], expected)  # of h_1 by x_1 alone, of h_2 by x_2 alone


def test_a_model_of_the_other_reset_is_trained_on() -> None:
    config = replace(time_machine.CONFIG, hidden=16, batch=4, steps=9, epochs=3)
    text = data.synthetic_text(500)
    found = conversions.continued(text, config, more=(0, 1, 4))
    assert found.epochs == [0, 1, 4]
    assert found.kept[2] < found.kept[0]
    assert found.ours[2] < found.ours[0]
    assert found.kept[0] != found.ours[0]
    assert found.ours[0] == pytest.approx(found.kept[0], rel=0.05)


def test_the_two_heads_learn_alike() -> None:
    for sigmoid, logits in conversions.heads(10):
        assert sigmoid == pytest.approx(logits, rel=1e-4)


def test_a_sigmoid_that_is_full_teaches_nothing_more() -> None:
    (_, loss, slope, *logits), (_, full, none, *more) = conversions.saturated([2.0, 20.0])
    assert [loss, slope] == pytest.approx(logits, rel=1e-5)
    assert (full, none) == (100, 0)
    assert more == pytest.approx([20, 1])


def test_the_table_tells_rounding_from_difference() -> None:
    outputs = [y for *_, y, _ in conversions.loaded()]
    slopes = [dx for *_, dx in conversions.loaded()]
    exact = [True, True, False, True, False]
    for figures in (outputs, slopes):
        assert [figure < 1e-5 for figure in figures] == exact
        assert [figure > 1e-4 for figure in figures] == [not e for e in exact]


def test_the_command_prints_every_table(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = data.synthetic_text(500)
    monkeypatch.setattr(data, "synthetic_text", lambda *_: text)
    config = replace(time_machine.CONFIG, batch=4, steps=9)
    monkeypatch.setattr(time_machine, "CONFIG", config)
    sizes = ["--hidden", "8", "--epochs", "1", "--iterations", "2", "--threads", "1"]
    assert command.run(["conversions", "--synthetic", *sizes]) == 0
    out = capsys.readouterr().out
    assert len(out.split("\n\n")) == 5
    assert "500 characters (synthetic), H = 8; epochs with the reset before the product: 1" in out

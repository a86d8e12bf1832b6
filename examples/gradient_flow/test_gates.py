"""The gates' biases in both implementations, and the additive path against autograd."""

from __future__ import annotations

import pytest
import torch

from examples.driver.layers import layer_class
from examples.gradient_flow.gates import (
    STARTS,
    along_the_path,
    forget_gates,
    label,
    longest_memory,
    models,
)
from examples.gradient_flow.model import Config, build_model, flow

H = 5
ROWS = {"input": slice(0, H), "forget": slice(H, 2 * H)}  # torch's order i, f, g, o


@pytest.mark.parametrize(
    ("start", "biases"),
    [
        ("usual", {}),
        ("forget1", {"forget": 1.0}),
        ("forget5", {"forget": 5.0}),
        ("guarded", {"forget": 5.0, "input": -5.0}),
    ],
)
def test_a_start_sets_the_sum_of_both_biases_of_its_gates_and_nothing_else(
    impl: str, start: str, biases: dict[str, float]
) -> None:
    layer = layer_class("lstm", impl)(3, H)
    expected = {name: value.clone() for name, value in layer.state_dict().items()}
    for gate, bias in biases.items():
        expected["bias_ih_l0"][ROWS[gate]] = bias
        expected["bias_hh_l0"][ROWS[gate]] = 0
    STARTS[start].apply(layer)
    torch.testing.assert_close(dict(layer.state_dict()), expected, rtol=0, atol=0)
    x = torch.zeros(1, 1, 3)  # after a state of zeros: the biases alone
    output, _ = layer(x)
    if "forget" in biases:
        f = forget_gates(layer, x, output)
        torch.testing.assert_close(f, torch.full_like(f, biases["forget"]).sigmoid())


def test_an_lstm_written_out_with_these_forget_gates_is_the_layer(impl: str) -> None:
    layer = layer_class("lstm", impl)(3, H).double()
    x = torch.randn(7, 2, 3, dtype=torch.double)
    output, (_, last) = layer(x)
    f = forget_gates(layer, x, output)
    c = torch.zeros(2, H, dtype=torch.double)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w_ih, w_hh, b_ih, b_hh = map(layer.get_parameter, names)
    for t in range(7):
        before = output[t - 1] if t else torch.zeros(2, H, dtype=torch.double)
        gates = x[t] @ w_ih.t() + before @ w_hh.t()
        i, _, g, _ = (gates + b_ih + b_hh).chunk(4, -1)
        c = f[t] * c + i.sigmoid() * g.tanh()
    torch.testing.assert_close(c, last[0])


def test_the_product_of_gates_is_autograds_gradient_where_h_leads_nowhere_back(impl: str) -> None:
    """The same LSTM with what its gates see of h cut from the graph."""
    layer = layer_class("lstm", impl)(3, H).double()
    STARTS["forget1"].apply(layer)
    x = torch.randn(7, 2, 3, dtype=torch.double)
    output = layer(x)[0].detach()
    f = forget_gates(layer, x, output).detach()
    c = [torch.zeros(2, H, dtype=torch.double, requires_grad=True)]
    for t in range(7):
        c.append(f[t] * c[-1] + 0.1)
    loss = c[-1].sin().sum()
    last, *_ = torch.autograd.grad(loss, c[-1:], retain_graph=True)
    expected = torch.stack(torch.autograd.grad(loss, c[1:]))
    torch.testing.assert_close(along_the_path(last, f), expected)


def test_without_recurrent_weights_the_additive_path_is_all_of_the_gradient(impl: str) -> None:
    model = build_model("lstm", impl, 7, STARTS["forget1"], Config(hidden=H))
    x, y = torch.randint(0, 7, (3, 9)), torch.randint(0, 7, (3,))
    with_h = flow(model, x, y)
    assert not torch.allclose(with_h["c"], with_h["path"], rtol=1e-3)
    with torch.no_grad():
        model.rnn.get_parameter("weight_hh_l0").zero_()
    found = flow(model, x, y)
    torch.testing.assert_close(found["path"], found["c"])


def test_the_longest_memory_is_that_of_the_unit_that_forgets_least() -> None:
    f = torch.tensor([0.5, 0.9, 0.2]).expand(4, 2, 3)
    assert longest_memory(f) == pytest.approx(-1 / torch.tensor(0.9).log().item())
    assert longest_memory(torch.ones(4, 2, 3)) == pytest.approx(1e9)


def test_only_an_lstm_has_a_start_of_its_forget_gate() -> None:
    found = [*models(["rnn", "lstm"], ["usual", "forget5", "large"])]
    assert found == [
        *(("rnn", "usual"), ("rnn", "large")),
        *(("lstm", "usual"), ("lstm", "forget5"), ("lstm", "large")),
    ]
    assert label("lstm", "forget5") == "LSTM, forget bias 5"
    assert label("gru", "usual") == "GRU"

"""torch's tools that know torch.nn's classes: ours are treated alike, or the remedy is told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fusedrnn
from support.oracle import close, pair, shown

SCRIPTING = pytest.mark.filterwarnings(
    "ignore:`torch.jit", "ignore::DeprecationWarning", "ignore:.*quantize_per_tensor:UserWarning"
)


class Model(nn.Module):
    def __init__(self, namespace: Any) -> None:
        super().__init__()
        self.lstm = namespace.LSTM(3, 5)
        self.cell = namespace.GRUCell(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        y, (h, _) = self.lstm(x, (h, c))
        result: Tensor = self.head(self.cell(y[-1]) + h[0, :, :4])
        return result


def arguments() -> tuple[Tensor, ...]:
    return torch.randn(4, 2, 3), torch.randn(1, 2, 5), torch.randn(1, 2, 5)


def test_print_shows_whose_layers_a_model_has() -> None:
    theirs = Model(nn)
    ours = fusedrnn.convert(Model(nn))
    assert "(lstm): fusedrnn.LSTM(3, 5)\n" in repr(ours)
    assert "(cell): fusedrnn.GRUCell(5, 4)\n" in repr(ours)
    assert shown(ours) == repr(theirs)

    class Own(fusedrnn.LSTM):
        pass

    assert repr(Own(3, 5)) == "Own(3, 5)"


def test_fx_makes_leaves_of_ours_as_of_torchs() -> None:
    ours, theirs, given = Model(fusedrnn), Model(nn), arguments()
    graphs = [fx.symbolic_trace(model) for model in (ours, theirs)]
    nodes = [[(n.op, str(n.target)) for n in graph.graph.nodes] for graph in graphs]
    assert nodes[0] == nodes[1]
    assert ("call_module", "lstm") in nodes[0]
    close(graphs[0](*given), ours(*given))
    graphs[0](*given).sum().backward()
    assert ours.lstm.weight_hh_l0.grad is not None


def test_fx_refuses_to_look_into_ours_as_into_torchs() -> None:
    for namespace in (fusedrnn, nn):
        with pytest.raises(fx.proxy.TraceError):
            fx.symbolic_trace(namespace.LSTM(3, 5))


def test_fx_looks_into_a_subclass_with_a_forward_of_its_own_as_into_torchs() -> None:
    refusals = []
    for namespace in (fusedrnn, nn):

        class Own(namespace.GRU):  # type: ignore[misc, name-defined]
            def forward(self, x: Tensor) -> Any:
                return super().forward(x)[0]

        with pytest.raises(fx.proxy.TraceError) as refusal:
            fx.symbolic_trace(nn.Sequential(Own(3, 5)))
        refusals.append(str(refusal.value))
    assert refusals[0] == refusals[1]


@SCRIPTING
def test_prepare_fx_takes_a_converted_model() -> None:
    from torch.ao.quantization import default_dynamic_qconfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, given = fusedrnn.convert(Model(nn)).eval(), arguments()
    expected = model(*given)
    setting: Any = {"object_type": [(nn.Linear, default_dynamic_qconfig)]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization knows")
        quantized = convert_fx(prepare_fx(model, setting, given))
    assert type(quantized.lstm) is fusedrnn.LSTM
    torch.testing.assert_close(quantized(*given), expected, rtol=0.1, atol=0.1)


@SCRIPTING
def test_quantize_dynamic_says_what_it_leaves_and_the_remedy_works() -> None:
    model = fusedrnn.convert(Model(nn)).eval()
    remedy = r"leaves fusedrnn.LSTM\(3, 5\) as it is: call fusedrnn.to_torch\(model\) first"
    kinds: Any = {nn.LSTM, nn.Linear}
    with pytest.warns(UserWarning, match=remedy):
        left = torch.ao.quantization.quantize_dynamic(model, kinds)
    assert type(left.lstm) is fusedrnn.LSTM
    quantized = torch.ao.quantization.quantize_dynamic(fusedrnn.to_torch(model), kinds)
    assert type(quantized.lstm).__module__.startswith("torch.ao.nn.quantized.dynamic")


@SCRIPTING
@pytest.mark.parametrize("name", ["LSTM", "GRUCell"])
def test_a_script_module_that_holds_ours_tells_the_remedy(name: str) -> None:
    script_method: Any = torch.jit.script_method  # type: ignore[attr-defined]

    class Holder(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = getattr(fusedrnn, name)(3, 5)

        @script_method  # type: ignore[untyped-decorator]
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[0]  # type: ignore[no-any-return]

    with pytest.raises(Exception, match=r"call fusedrnn.to_torch\(model\) first"):
        Holder()


@pytest.mark.parametrize("packed", [None, "sorted", "unsorted"])
@pytest.mark.parametrize("shape", [(1, 2, 5), (2, 2, 5), (), (2, 5), (2, 2, 5, 1, 1), (0, 1, 2, 5)])
def test_one_tensor_for_the_states_of_an_lstm_is_refused_with_the_remedy(
    shape: tuple[int, ...], packed: str | None
) -> None:
    rows = [torch.randn(n, 3) for n in ((3, 2) if packed == "sorted" else (2, 3))]
    x: Any = torch.randn(4, 2, 3)
    if packed:
        x = nn.utils.rnn.pack_sequence(rows, enforce_sorted=packed == "sorted")
    refused = []
    for namespace in (fusedrnn, nn):
        with pytest.raises((IndexError, RuntimeError, TypeError)) as refusal:
            namespace.LSTM(3, 5)(x, torch.zeros(shape))
        refused.append(refusal)
    assert refused[0].type is refused[1].type
    assert "tuple" in str(refused[0].value)
    assert "pass (h" in str(refused[0].value)


def test_two_states_stacked_in_one_tensor_are_taken_where_torch_takes_them() -> None:
    ours, theirs = pair("LSTM", 3, 5)
    x, hx = torch.randn(4, 3), torch.randn(2, 1, 5)
    close(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_states_that_left_autocast_are_refused_with_the_remedy_that_works(name: str) -> None:
    module, x = getattr(fusedrnn, name)(3, 5), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        states = module(x)[1]
    with pytest.raises(RuntimeError, match=r"Float as input is, .* pass hx.to\(input.dtype\)"):
        module(x, states)
    if name == "LSTM":
        with pytest.raises(RuntimeError, match=r"pass cx.to\(input.dtype\)"):
            module(x, (states[0].float(), states[1]))
        states = tuple(state.to(x.dtype) for state in states)
    else:
        states = states.to(x.dtype)
    module(x, states)


def test_weights_of_another_type_are_refused_with_the_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"weights must be .* call module.to\(input.dtype\)"):
        fusedrnn.GRUCell(3, 5)(torch.randn(2, 3).bfloat16())

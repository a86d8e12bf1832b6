"""Tracing: fake kernels and schemas are right, and modules compile and export whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from support.oracle import tensors_of
from support.problems import MODES
from support.theirs import GATES

NAMES = ("RNN", "LSTM", "GRU", "MGU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell", "MGUCell")


def _weights(mode: str, D: int = 1, P: int = 0, I: int = 3, H: int = 5) -> list[Tensor]:  # noqa: E741
    G = GATES[mode] * H
    shapes = [(G, I), (G, P or H), (G,), (G,)] + ([(P, H)] if P else [])
    return [torch.randn(s, requires_grad=True) for s in shapes * D]


@pytest.mark.parametrize("mode", MODES)
def test_opcheck_passes_on_stack_and_layer(mode: str) -> None:
    lstm = mode == "LSTM"
    x = torch.randn(4, 2, 3, requires_grad=True)
    h = torch.randn(2, 2, 5, requires_grad=True)
    c = torch.randn(2, 2, 5, requires_grad=True) if lstm else None
    weights = _weights(mode, D=2)
    torch.library.opcheck(
        torch.ops.fusedrnn.stack.default, (x, None, h, c, weights, mode, True, 1, 0.0, True, True)
    )
    torch.library.opcheck(
        torch.ops.fusedrnn.layer.default, (x, None, h, c, weights, mode, True, True)
    )
    torch.library.opcheck(
        torch.ops.fusedrnn.layer.default,
        (x.detach(), None, None, None, [w.detach() for w in weights], mode, True, False),
    )


def test_opcheck_passes_with_packed_rows_and_projection() -> None:
    data, sizes = torch.randn(7, 3, requires_grad=True), torch.tensor([3, 2, 2], device="cpu")
    h = torch.randn(1, 3, 2, requires_grad=True)
    c = torch.randn(1, 3, 5, requires_grad=True)
    torch.library.opcheck(
        torch.ops.fusedrnn.layer.default,
        (data, sizes, h, c, _weights("LSTM", P=2), "LSTM", True, True),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck_passes_on_layer_backward(mode: str, packed: bool) -> None:
    x = torch.randn(7, 3) if packed else torch.randn(4, 3, 3)
    sizes = torch.tensor([3, 2, 2], device="cpu") if packed else None
    h = torch.randn(1, 3, 5)
    c = torch.randn(1, 3, 5) if mode == "LSTM" else None
    weights = [w.detach() for w in _weights(mode)]
    y, h_n, c_n, reserve, _ = torch.ops.fusedrnn.layer(x, sizes, h, c, weights, mode, True, True)
    slopes = [
        torch.randn_like(y),
        torch.randn_like(h_n),
        torch.randn_like(c_n) if c is not None else None,
    ]
    for needs in ([True] * 7, [False, True, False, True, False, False, True]):
        needs[2] = needs[2] and c is not None
        torch.library.opcheck(
            torch.ops.fusedrnn.layer_backward.default,
            (
                *slopes[:2],
                None if c is None else slopes[2],
                x,
                sizes,
                h,
                c,
                weights,
                y,
                reserve,
                mode,
                True,
                needs,
            ),
        )


@pytest.mark.parametrize("mode", MODES)
def test_opcheck_passes_on_cell(mode: str) -> None:
    x, h = (torch.randn(2, n, requires_grad=True) for n in (3, 5))
    c = torch.randn(2, 5, requires_grad=True) if mode == "LSTM" else None
    torch.library.opcheck(torch.ops.fusedrnn.cell.default, (x, h, c, *_weights(mode), mode))


COMPILED = [
    (name, options) for name in NAMES for options in ({}, {"num_layers": 2, "bidirectional": True})
]


def compare_compiled(module: Any, compiled: Any, *arguments: Any) -> None:
    """Assert equal results and gradients of a module and its compiled self."""
    eager = copy.deepcopy(module)
    outputs = tensors_of(compiled(*arguments))
    expected = tensors_of(eager(*arguments))
    torch.testing.assert_close(outputs, expected)
    for results in (outputs, expected):
        torch.autograd.backward(results, [torch.ones_like(t) for t in results])
    for p, q in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    module.zero_grad()


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiles_to_one_graph_forward_and_backward(case: Any) -> None:
    name, options = case
    module = getattr(fusedrnn, name)(3, 5, batch_first=True, **options)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compare_compiled(module, compiled, torch.randn(2, 4, 3))
    LD = options.get("num_layers", 1) * (2 if options else 1)
    h = torch.randn(LD, 2, 5)
    compare_compiled(module, compiled, torch.randn(2, 4, 3), (h, h) if name == "LSTM" else h)
    compare_compiled(module, compiled, torch.randn(4, 3))


@pytest.mark.parametrize("name", CELLS)
def test_cell_compiles_to_one_graph_forward_and_backward(name: str) -> None:
    cell = getattr(fusedrnn, name)(3, 5)
    compiled = torch.compile(cell, backend="aot_eager", fullgraph=True)
    compare_compiled(cell, compiled, torch.randn(2, 3))
    h = torch.randn(2, 5)
    compare_compiled(cell, compiled, torch.randn(2, 3), (h, h) if name == "LSTMCell" else h)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_module_serves_any_T_and_B_without_recompiling(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T, B in ((7, 6), (9, 4), (2, 8), (30, 2)):  # none equal to another size
            compare_compiled(module, compiled, torch.randn(T, B, 3))


@pytest.mark.parametrize("given", [True, False], ids=["hx given", "no hx"])
@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_compile_within_a_model(name: str, given: bool) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2, bidirectional=True)
    h = torch.randn(4, 3, 5)
    hx: Any = None
    if given:
        hx = (h, h) if name == "LSTM" else h

    def model(data: Tensor, sizes: Tensor) -> Any:
        output, state = module(PackedSequence(data, sizes), hx)
        return output.data.tanh(), state

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    data, sizes = torch.randn(7, 3), torch.tensor([3, 2, 2], device="cpu")
    torch.testing.assert_close(compiled(data, sizes), model(data, sizes))


def test_compiled_dropout_module_trains_and_sees_new_weights() -> None:
    module: Any = fusedrnn.GRU(3, 5, 2, dropout=0.5)
    compiled: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 2, 3)
    results = []
    for f in (module, compiled):
        torch.manual_seed(1)
        results.append(f(x)[0])
    torch.testing.assert_close(*results)
    module.eval()
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    torch.testing.assert_close(compiled(x), module(x))


def test_inductor_compiles_a_model_around_the_layer() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn: Any = fusedrnn.LSTM(3, 5, 2)
            self.out = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.rnn(x.relu())[0]).tanh()
            return result

    model = Model()
    compare_compiled(model, torch.compile(model, fullgraph=True), torch.randn(4, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_reduced_overhead_trains_alike_and_keeps_earlier_results(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    compiled: Any = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):  # on a GPU: warm up, capture, replay
        compare_compiled(module, compiled, torch.randn(4, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_transforms_compile_to_one_graph(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    weights = {k: p.detach() for k, p in module.named_parameters()}
    x = torch.randn(3, 4, 2, 3)

    def loss(weights: Any, x: Tensor) -> Any:
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    def call(weights: Any, x: Tensor) -> Any:
        many = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
        return many, torch.func.grad(loss, argnums=1)(weights, x[0])

    compiled: Any = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(weights, x), call(weights, x))


@pytest.mark.parametrize("name", NAMES)
def test_compiled_autograd_takes_the_backward_pass(name: str) -> None:
    from torch._dynamo import compiled_autograd

    module = getattr(fusedrnn, name)(3, 5, 2)
    eager = copy.deepcopy(module)
    x = torch.randn(4, 2, 3)
    eager(x)[0].mul_(2).square().sum().backward()
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        module(x)[0].mul_(2).square().sum().backward()
    for p, q in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_may_be_changed_in_place_within_the_graph(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    weights = list(module.parameters())
    x = torch.randn(4, 2, 3)

    def model(x: Tensor) -> Any:
        return module(x)[0].mul_(2).tanh()

    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = [torch.autograd.grad(f(x).square().sum(), weights) for f in (model, compiled)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", NAMES)
def test_packed_training_with_dropout_compiles(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 3, dropout=0.5)

    def model(data: Tensor, sizes: Tensor) -> Any:
        return module(PackedSequence(data, sizes))[0].data.tanh().sum()

    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    data, sizes = torch.randn(7, 3), torch.tensor([3, 2, 2], device="cpu")
    found = []
    for f in (model, compiled):
        torch.manual_seed(4)
        found.append(torch.autograd.grad(f(data, sizes), list(module.parameters())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", NAMES)
def test_export_keeps_T_and_B_dynamic(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2).eval()
    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    program = torch.export.export(
        module, (torch.randn(4, 3, 3),), dynamic_shapes=({0: T, 1: B},), strict=False
    )
    exported: Any = program.module()
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(exported(x), module(x))


@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_tell_shapes_without_computing(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        module = getattr(fusedrnn, name)(3, 5, 2, bidirectional=True)
        x = torch.randn(4, 2, 3, requires_grad=True)
        output, _ = module(x)
        output.sum().backward()
    assert output.shape == (4, 2, 10)
    assert x.grad is not None
    assert x.grad.shape == x.shape

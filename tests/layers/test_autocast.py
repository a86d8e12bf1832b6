"""Autocast on the CPU: results in the low dtype, gradients in the dtype of the weights, as cuDNN
gives them; a weight of float32 is not converted at all, any other once a call."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fusedrnn
from support.oracle import packed, states, tensors_of

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
LOW = (torch.bfloat16, torch.float16)


def autocast(dtype: torch.dtype = torch.bfloat16, **options: Any) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype, **options)


def make(name: str, **options: Any) -> tuple[Any, Any, Any]:
    """A module, an input and states for it."""
    if name in CELLS:
        return (
            getattr(fusedrnn, name)(3, 5, **options),
            torch.randn(2, 3),
            states(name, 2, 5),
        )
    module = getattr(fusedrnn, name)(3, 5, num_layers=2, bidirectional=True, **options)
    return module, torch.randn(4, 2, 3), states(name, 4, 2, 5)


# bfloat16 is rounded before each product as well, where the machine multiplies it; float16 is not.
ROUNDED: dict[torch.dtype, dict[str, Any]] = {
    torch.bfloat16: {"rtol": 0.02, "atol": 0.01},
    torch.float16: {"rtol": 1e-3, "atol": 1e-5},
}


def as_tuple(hx: Any) -> tuple[Tensor, ...]:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


class Casts(TorchDispatchMode):
    """Counts conversions of dtype by the shape of what is converted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name() == "aten::_to_copy" and result.dtype != args[0].dtype:
            self.of[tuple(result.shape)] += 1
        return result


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_results_are_low_and_as_near_as_that_allows(name: str, dtype: torch.dtype) -> None:
    module, x, hx = make(name)
    for arguments in ((x,), (x, hx)):
        with autocast(dtype):
            found = tensors_of(module(*arguments))
        exact = tensors_of(module(*arguments))
        assert {t.dtype for t in found} == {dtype}
        torch.testing.assert_close(found, tuple(t.to(dtype) for t in exact), **ROUNDED[dtype])


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_gradients_have_the_dtype_of_what_they_are_of(name: str) -> None:
    module, x, hx = make(name)
    x.requires_grad_()
    given = tuple(h.bfloat16().requires_grad_() for h in as_tuple(hx))
    with autocast():
        results = tensors_of(module(x, given if len(given) > 1 else given[0]))
        loss = sum(t.float().square().sum() for t in results)
    assert isinstance(loss, Tensor)
    leaves = [x, *module.parameters()]
    gradients = torch.autograd.grad(loss, [*leaves, *given])
    assert {g.dtype for g in gradients[: len(leaves)]} == {torch.float32}
    assert {g.dtype for g in gradients[len(leaves) :]} == {torch.bfloat16}
    exact_states = tuple(h.detach().float() for h in given)
    y = tensors_of(module(x, exact_states if len(given) > 1 else exact_states[0]))
    exact = torch.autograd.grad(torch.stack([t.square().sum() for t in y]).sum(), leaves)
    torch.testing.assert_close(gradients[: len(leaves)], exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_rows_and_mixed_operands_are_cast_alike(name: str) -> None:
    module, x, hx = make(name)
    rows = packed([torch.randn(4, 3), torch.randn(2, 3)])
    with autocast():
        output, state = module(rows, hx)
        assert output.data.dtype == torch.bfloat16
        assert {t.dtype for t in tensors_of(state)} == {torch.bfloat16}
        # A low input comes from the layer before; low weights are a model's own choice.
        low = module(x.bfloat16(), hx)
        torch.testing.assert_close(low, module(x.bfloat16().float(), hx))
        halved = module.bfloat16()(x, hx)
        assert {t.dtype for t in tensors_of(halved)} == {torch.bfloat16}


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_each_weight_is_cast_at_most_once_a_call(name: str, weights: torch.dtype) -> None:
    module, x, hx = make(name)
    module.to(weights)
    shapes = Counter(tuple(p.shape) for p in module.parameters())
    for training in (True, False):
        with torch.set_grad_enabled(training), autocast(), Casts() as casts:
            module(x, hx)
        found = Counter({k: n for k, n in casts.of.items() if k in shapes})
        assert found == (shapes if weights == torch.bfloat16 else Counter())


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_float64_is_left_alone(name: str) -> None:
    module, x, hx = make(name, dtype=torch.float64)
    given = tuple(h.double() for h in as_tuple(hx))
    arguments = (x.double(), given if len(given) > 1 else given[0])
    with autocast():
        found = module(*arguments)
    torch.testing.assert_close(found, module(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_regions_nest_and_end(name: str) -> None:
    module, x, hx = make(name)
    plain = tensors_of(module(x, hx))
    with autocast():
        with autocast(enabled=False):
            off = tensors_of(module(x, hx))
        with autocast(torch.float16):
            inner = tensors_of(module(x, hx))
        outer = tensors_of(module(x, hx))
    torch.testing.assert_close(off, plain, rtol=0, atol=0)
    torch.testing.assert_close(tensors_of(module(x, hx)), plain, rtol=0, atol=0)
    assert {t.dtype for t in inner} == {torch.float16}
    assert {t.dtype for t in outer} == {torch.bfloat16}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_weights_changed_inside_a_region_are_seen_there(name: str, cache: bool) -> None:
    module, x, hx = make(name)
    linear = nn.Linear(5, 5)
    with autocast(cache_enabled=cache), torch.no_grad():
        before = module(x, hx)
        linear(tensors_of(before)[-1])  # fills torch's cache of cast weights
        module.get_parameter(next(iter(module.state_dict()))).mul_(3)
        after = module(x, hx)
    with torch.no_grad():
        exact = tensors_of(module(x, hx))
    rounded = tuple(t.bfloat16() for t in exact)
    torch.testing.assert_close(tensors_of(after), rounded, **ROUNDED[torch.bfloat16])
    assert not torch.equal(tensors_of(before)[0], tensors_of(after)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_an_autocast_model_trains_as_in_float32(name: str) -> None:
    losses = []
    for region in (True, False):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(3, 3), getattr(fusedrnn, name)(3, 8, 2), nn.Linear(8, 1)])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = torch.randn(6, 4, 3)
        for _ in range(10):
            with autocast(enabled=region):
                y = model[2](model[1](model[0](x))[0])
                loss = (y.float() - x.sum(-1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_taken_within_a_region_are_not_cast(name: str) -> None:
    module, x, _ = make(name)
    v = x.clone().requires_grad_()

    def penalty(region: bool) -> tuple[Tensor, ...]:
        with autocast(enabled=region):
            y = module(v)[0].float()
            (slope,) = torch.autograd.grad(y.square().sum(), v, create_graph=True)
            loss: Tensor = slope.square().sum()
            return torch.autograd.grad(loss, [v, *module.parameters()])

    torch.testing.assert_close(penalty(True), penalty(False), rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_the_definition_computes_in_float32_too(name: str) -> None:
    module, x, _ = make(name)

    def call(v: Tensor) -> Tensor:
        return tensors_of(module(v))[0]

    exact = torch.func.jvp(call, (x,), (x,))
    with autocast():
        found = torch.func.jvp(call, (x,), (x,))
        mapped = tensors_of(torch.func.vmap(call)(torch.stack([x, -x])))[0]
    rounded = tuple(t.bfloat16() for t in exact)
    torch.testing.assert_close(found, rounded)
    torch.testing.assert_close(mapped[0], rounded[0], **ROUNDED[torch.bfloat16])


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_compiled_under_autocast_it_is_one_graph_and_equal(name: str) -> None:
    module, x, hx = make(name)

    def call(v: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(v.relu(), hx)

    compiled: Any = torch.compile(call, backend="aot_eager", fullgraph=True)
    whole: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    found = tensors_of(compiled(x))
    with autocast():
        expected = tensors_of(module(x.relu(), hx))
        around = tensors_of(whole(x, hx))
        eager = tensors_of(module(x, hx))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(around, eager)
    first: Tensor = found[0]
    first.float().sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}

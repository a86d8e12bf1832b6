"""Derivatives by finite differences, and autograd's rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import fusedrnn
from support.oracle import tensors_of, without_cudnn
from support.problems import MODES, Problem, build, each, inputs
from support.theirs import THEIRS

NAMES = ("RNN", "LSTM", "GRU", "MGU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
SMALL: dict[str, Any] = {"T": 3, "B": 2, "I": 2, "H": 3, "dtype": torch.float64, "hx": "grad"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"L": 2, "bidirectional": True},
    {"form": "unsorted", "T": 4, "B": 3, "bidirectional": True},
    {"form": "batch_first", "bias": False},
    {"form": "unbatched"},
    {"hx": "none"},
    {"P": 2},
    {"P": 1, "form": "unsorted", "B": 3, "bidirectional": True, "L": 2},
]
TWICE: list[dict[str, Any]] = [
    {},
    {"form": "unsorted", "bidirectional": True},
    {"L": 2, "hx": "none"},
    {"form": "batch_first", "bias": False},
    {"form": "unbatched"},
    {"P": 1},
    {"P": 1, "form": "unsorted", "bidirectional": True, "L": 2},
]


def as_function(problem: Problem) -> tuple[Any, list[Tensor]]:
    """A function of inputs, states and weights, with its arguments, for gradcheck."""
    module = build(problem, fusedrnn)
    input, _, leaves = inputs(problem, problem.dtype)
    names = [name for name, _ in module.named_parameters()]
    weights = [w.detach().requires_grad_() for w in module.parameters()]

    def call(*args: Tensor) -> tuple[Tensor, ...]:
        x: Any = args[0]
        given = args[1 : len(leaves)]
        if isinstance(input, PackedSequence):
            x = input._replace(data=x.transpose(0, 1).flatten(0, 1)[rows])
        hx: Any = (given if problem.mode == "LSTM" else given[0]) if given else None
        swapped = dict(zip(names, args[len(leaves) :], strict=True))
        return tensors_of(torch.func.functional_call(module, swapped, (x, hx)))

    if isinstance(input, PackedSequence):  # which rows of x the packed data are
        flat = leaves[0].transpose(0, 1).flatten(0, 1)
        rows = torch.stack([(flat == row).all(1).nonzero()[0, 0] for row in input.data])
    return call, [*leaves, *weights]


@pytest.mark.parametrize("problem", each(MODES, VARIANTS, **SMALL), ids=str)
def test_gradients_equal_finite_differences(problem: Problem) -> None:
    assert torch.autograd.gradcheck(*as_function(problem))


@pytest.mark.parametrize("problem", each(MODES, TWICE, **{**SMALL, "T": 2, "H": 2}), ids=str)
def test_second_derivatives_equal_finite_differences(problem: Problem) -> None:
    assert torch.autograd.gradgradcheck(*as_function(problem))


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("problem", each(MODES, TWICE, **{**SMALL, "T": 2, "H": 2}), ids=str)
def test_forward_mode_and_batched_gradients_equal_finite_differences(problem: Problem) -> None:
    call, leaves = as_function(problem)
    assert torch.autograd.gradcheck(
        call,
        leaves,
        check_forward_ad=True,
        check_backward_ad=False,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradcheck(call, leaves, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        call,
        leaves,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
        fast_mode=True,
    )
    assert torch.autograd.gradgradcheck(call, leaves, check_batched_grad=True, fast_mode=True)


@pytest.mark.parametrize("name", CELLS)
def test_cell_derivatives_equal_finite_differences(name: str) -> None:
    cell = getattr(fusedrnn, name)(2, 3).double()
    names = [k for k, _ in cell.named_parameters()]
    count = 2 if name == "LSTMCell" else 1
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    weights = [w.detach().requires_grad_() for w in cell.parameters()]

    def call(x: Tensor, *rest: Tensor) -> Any:
        hx = rest[:count] if count == 2 else rest[0]
        swapped = dict(zip(names, rest[count:], strict=True))
        return torch.func.functional_call(cell, swapped, (x, hx))

    assert torch.autograd.gradcheck(call, [x, *states, *weights])
    assert torch.autograd.gradgradcheck(call, [x, *states, *weights])


@pytest.mark.parametrize("name", NAMES)
def test_penalty_on_the_gradient_trains_as_in_torch(name: str) -> None:
    ours = getattr(fusedrnn, name)(3, 5, 2, bidirectional=True).double()
    theirs = getattr(THEIRS, name)(3, 5, 2, bidirectional=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for module in (ours, theirs):
        v = x.clone().requires_grad_()
        with without_cudnn():
            y = module(v)[0]
            (slope,) = torch.autograd.grad((y * y).sum(), v, create_graph=True)
            (slope * slope).sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", NAMES)
def test_backward_twice_needs_retain_graph_and_accumulates(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2)
    y = module(torch.randn(4, 2, 3))[0]
    y.sum().backward(retain_graph=True)
    once = [p.grad.clone() for p in module.parameters()]
    y.sum().backward()
    for p, g in zip(module.parameters(), once, strict=True):
        assert torch.equal(p.grad, 2 * g)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["weight_ih_l0", "weight_hh_l0", "input"])
def test_a_tensor_changed_in_place_before_backward_is_detected(name: str, which: str) -> None:
    module = getattr(fusedrnn, name)(3, 5)
    x = torch.randn(4, 2, 3, requires_grad=True)
    copied = x * 1
    y = module(copied)[0]
    with torch.no_grad():
        (copied if which == "input" else getattr(module, which)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("L", [1, 2])
def test_an_output_may_be_changed_in_place_before_backward(name: str, L: int) -> None:
    module = getattr(fusedrnn, name)(3, 5, L, bidirectional=True)
    x = torch.randn(4, 2, 3)

    def call(x: Tensor) -> Tensor:
        output: Tensor = module(x)[0]
        return output

    def gradients(y: Tensor) -> list[Tensor]:
        loss = y.square().sum()
        found = []
        for retain in (True, False):
            module.zero_grad()
            loss.backward(retain_graph=retain)
            found = [p.grad.clone() for p in module.parameters()]
        return found

    wanted = gradients(call(x) * 2)
    assert all(map(torch.equal, gradients(call(x).mul_(2)), wanted))
    assert all(
        map(torch.equal, gradients(checkpoint(call, x, use_reentrant=False).mul_(2)), wanted)
    )
    with torch.autograd.graph.save_on_cpu():
        y = call(x).mul_(2)
    assert all(map(torch.equal, gradients(y), wanted))
    y = call(x).mul_(2)
    with torch.no_grad():
        x.add_(1)  # what is computed again is so from the same input, or not at all
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(y)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_changed_in_place_has_second_derivatives(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5).double()
    x = torch.randn(4, 2, 3, dtype=torch.double, requires_grad=True)

    def second(change: Callable[[Tensor], Tensor]) -> Tensor:
        y = change(module(x)[0])
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    torch.testing.assert_close(second(lambda y: y.mul_(2)), second(lambda y: y * 2))


@pytest.mark.parametrize("name", NAMES)
def test_eval_mode_has_gradients(name: str) -> None:
    ours = getattr(fusedrnn, name)(3, 5, 2, dropout=0.5).eval()
    theirs = getattr(THEIRS, name)(3, 5, 2, dropout=0.5).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 2, 3)
    for module in (ours, theirs):
        with without_cudnn():
            module(x)[0].sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_only_what_requires_grad_gets_one(name: str) -> None:
    module = getattr(fusedrnn, name)(3, 5, 2).requires_grad_(False)
    x = torch.randn(4, 2, 3)
    assert not module(x)[0].requires_grad
    module.bias_hh_l1.requires_grad_(True)
    output, _ = module(x)
    assert output.requires_grad
    output.sum().backward()
    assert [k for k, p in module.named_parameters() if p.grad is not None] == ["bias_hh_l1"]


@pytest.mark.parametrize("name", NAMES)
def test_several_threads_may_run_one_module(name: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    module = getattr(fusedrnn, name)(3, 20)
    xs = [torch.randn(9, 4, 3) for _ in range(8)]

    def slope(x: Tensor) -> Tensor:
        v = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(module(v)[0].square().sum(), v)
        return g

    expected = [slope(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(slope, xs * 4), expected * 4, strict=True):
            assert torch.equal(got, want)

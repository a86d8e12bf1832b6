"""What once went wrong: each test states a rule that some earlier kernel or formula broke."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp

import fusedrnn
from fusedrnn import reference
from support.accuracy import assert_as_accurate_as
from support.oracle import packed, pair, refusal, states, tensors_of, without_cudnn
from support.problems import MODES, Problem, check, each
from support.theirs import GATES, name_of

NAMES = ("RNN", "LSTM", "GRU")
F64 = torch.float64


def modules(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Ours and torch.nn's, in float64 unless a dtype is given."""
    return pair(name, *args, **{"dtype": F64, **options})


def randn(*shape: int, **options: Any) -> Tensor:
    return torch.randn(*shape, **{"dtype": F64, **options})


def h0_from_x(module: Any, x: Tensor) -> Any:
    h = x[:1].mean(-1, keepdim=True).expand(1, -1, module.hidden_size).tanh()
    return module(x, (h, 2 * h) if module.mode == "LSTM" else h)[0]


def carried_state(module: Any, x: Tensor) -> Any:
    first, hx = module(x)
    return first + module(x, hx)[0]


def output_as_input(module: Any, x: Tensor) -> Any:
    y, hx = module(x)
    return module(y.tanh() + x, hx)[0]


def tied_biases(module: Any, x: Tensor) -> Any:
    swap = {"bias_hh_l0": module.bias_ih_l0}
    return functional_call(module, swap, (x,))[0]


def tied_weights(module: Any, x: Tensor) -> Any:
    swap = {"weight_hh_l0": module.weight_ih_l0, "bias_hh_l0": module.bias_ih_l0}
    return functional_call(module, swap, (x,))[0]


DEPENDENT = (h0_from_x, carried_state, output_as_input, tied_biases, tied_weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", DEPENDENT, ids=lambda call: call.__name__)
def test_inputs_that_depend_on_each_other_are_not_counted_twice_by_create_graph(
    name: str, call: Callable[[Any, Tensor], Tensor]
) -> None:
    x, slope = randn(4, 2, 5), randn(4, 2, 5)
    results = []
    for module in modules(name, 5, 5):
        v = x.clone().requires_grad_()
        leaves = [v, *module.parameters()]
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        with without_cudnn():
            loss = (call(module, v) * slope).sum()
            first = torch.autograd.grad(loss, leaves, create_graph=True, **options)
            plain = torch.autograd.grad((call(module, v) * slope).sum(), leaves, **options)
            torch.testing.assert_close(first, plain)
            penalty = torch.stack([(g * g).sum() for g in first]).sum()
            results.append((first, torch.autograd.grad(penalty, leaves, **options)))
    torch.testing.assert_close(results[0], results[1])


def theirs_in_forward_mode(module: Any, x: Tensor, weights: dict[str, Tensor]) -> Any:
    """Output and final states of torch.nn's module by the definition: nn.LSTM has no tangents, nor
    has any of torch.nn's on a GPU."""
    zeros = x.new_zeros(1, x.size(1), module.hidden_size)
    y, h, c, _ = reference.layer(x, None, zeros, zeros, list(weights.values()), module.mode, True)
    return (y, h, c) if module.mode == "LSTM" else (y, h)


def called(module: Any, x: Tensor, weights: dict[str, Tensor]) -> Any:
    return tensors_of(functional_call(module, weights, (x,)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("which", ["input", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_forward_mode_tangents_are_torchs(name: str, frozen: bool, which: str) -> None:
    ours, theirs = modules(name, 3, 5)
    ours.requires_grad_(not frozen)
    x = randn(4, 2, 3)
    weights = {k: v.detach() for k, v in theirs.named_parameters()}
    by_definition = name == "LSTM" or x.device.type != "cpu"
    expected_by: Any = theirs_in_forward_mode if by_definition else called

    def tangents(by: Any, module: Any, own: dict[str, Tensor]) -> Any:
        if which == "input":
            return jvp(lambda v: by(module, v, own), (x,), (direction,))
        return jvp(lambda w: by(module, x, own | {which: w}), (weights[which],), (direction,))

    direction = torch.randn_like(x if which == "input" else weights[which])
    actual = tangents(called, ours, dict(ours.named_parameters()))
    expected = tangents(expected_by, theirs, weights)
    torch.testing.assert_close(actual, expected)
    assert all(t.abs().sum() > 0 for t in actual[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [True, False])
def test_dual_input_carries_its_tangent_through(name: str, frozen: bool) -> None:
    ours, theirs = modules(name, 3, 5)
    ours.requires_grad_(not frozen)
    weights = {k: v.detach() for k, v in theirs.named_parameters()}
    x, direction = randn(4, 2, 3), randn(4, 2, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        results = [tensors_of(ours(dual)), theirs_in_forward_mode(theirs, dual, weights)]
        pairs = [[forward_ad.unpack_dual(t) for t in result] for result in results]
        torch.testing.assert_close(
            [(p.primal, p.tangent) for p in pairs[0]], [(p.primal, p.tangent) for p in pairs[1]]
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frozen", [True, False])
def test_functional_derivatives_are_autograds(name: str, frozen: bool) -> None:
    ours, _ = modules(name, 3, 5)
    ours.requires_grad_(not frozen)
    x, slope = randn(4, 2, 3), randn(4, 2, 5)

    def loss(v: Tensor) -> Any:
        return (ours(v)[0] * slope).sum()

    v = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(v), v)
    torch.testing.assert_close(grad(loss)(x), expected)
    jacobian = jacrev(lambda v: ours(v)[0])(x)
    torch.testing.assert_close((jacobian * slope[..., None, None, None]).sum((0, 1, 2)), expected)

    weights = {k: p.detach() for k, p in ours.named_parameters()}
    by_weight = grad(lambda w: (functional_call(ours, w, (x,))[0] * slope).sum())(weights)
    ours.requires_grad_(True)
    found = torch.autograd.grad(loss(x), list(ours.parameters()))
    torch.testing.assert_close(list(by_weight.values()), list(found))


def with_one(value: float, name: str, H: int, T: int) -> list[dict[str, Any]]:
    """Results and gradients in float32 of an input with one such value: ours, and torch.nn's on the
    CPU."""
    x = torch.randn(T, 4, 6)
    x[T // 2, 1, 2] = value
    hx = states(name, 1, 4, H)
    results = []
    ours, theirs = modules(name, 6, H, dtype=torch.float32)
    for module, device in ((ours, x.device), (theirs.cpu(), "cpu")):
        leaves = [t.detach().clone().to(device).requires_grad_() for t in tensors_of((x, hx))]
        own: Any = tuple(leaves[1:]) if name == "LSTM" else leaves[1]
        outputs = tensors_of(module(leaves[0], own))
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
        named: dict[str, Any] = dict(zip(("output", "h_n", "c_n"), outputs, strict=False))
        named |= {f"d{k}": t.grad for k, t in zip(("x", "h0", "c0"), leaves, strict=False)}
        results.append(named | {f"d{k}": p.grad for k, p in module.named_parameters()})
    return results


def kinds(t: Tensor) -> Tensor:
    """0 where finite, 1 where infinite, 2 where nan."""
    return t.isinf() + 2 * t.isnan()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("H", [3, 9, 100])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("T", [1, 5])
def test_one_value_that_is_not_finite_spoils_what_it_spoils_in_torch(
    name: str, H: int, value: float, T: int
) -> None:
    ours, theirs = with_one(value, name, H, T)
    for key, expected in theirs.items():
        assert torch.equal(kinds(ours[key]).cpu(), kinds(expected)), key


@pytest.mark.cpu_only("cuDNN has words of its own")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_mix_of_devices_is_refused_in_every_grad_mode(name: str, mode: Any) -> None:
    ours, theirs = modules(name, 3, 5, dtype=torch.float32)
    x, meta = torch.randn(4, 2, 3), torch.randn(4, 2, 3, device="meta")
    for args in ((meta,), (x, states(name, 1, 2, 5, device="meta"))):
        with mode():
            error = refusal(partial(ours, *args))
            assert error == refusal(partial(theirs, *args))
        assert "tensors are not at the same device" in error[1]
    with mode(), pytest.raises(RuntimeError, match="not at the same device"):
        run_stack(meta, list(ours.parameters()), ours.mode)


def run_stack(
    x: Tensor,
    weights: list[Tensor],
    mode: str,
    hx: Tensor | None = None,
    cx: Tensor | None = None,
) -> Any:
    return torch.ops.fusedrnn.stack(x, None, hx, cx, weights, mode, True, 1, 0.0, False, False)


def detached(module: nn.Module) -> list[Tensor]:
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_the_stack_operator_refuses_mixed_dtypes_and_names_both(name: str) -> None:
    module, _ = modules(name, 3, 5, dtype=torch.float32)
    x, h = torch.randn(4, 2, 3), torch.zeros(1, 2, 5)
    weights, half = detached(module), [w.bfloat16() for w in detached(module)]
    c = h if name == "LSTM" else None
    mixed: list[tuple[Any, ...]] = [
        (x.bfloat16(), weights, module.mode),
        (x, half, module.mode),
        (x, [weights[0], half[1], *weights[2:]], module.mode),
        (x, weights, module.mode, h.bfloat16(), c),
        (x.bfloat16(), half, module.mode, h, c),
    ]
    mixed += [(x, weights, module.mode, h, h.bfloat16())] if name == "LSTM" else []
    for args in mixed:
        error = refusal(partial(run_stack, *args))
        assert error[0] is RuntimeError
        for dtype in ("float", "bfloat16"):
            assert dtype in re.findall(r"\w+", error[1].lower()), error[1]


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_refuse_mixed_dtypes_and_name_both(name: str) -> None:
    cell, _ = modules(name, 3, 5, dtype=torch.float32)
    x = torch.randn(2, 3)
    hx = states(name, 2, 5)
    for args in ((x.bfloat16(),), (x.bfloat16(), hx), (x, states(name, 2, 5, dtype=F64))):
        error = refusal(partial(cell, *args))
        assert error[0] is RuntimeError
        other = "double" if len(args) > 1 and args[0].dtype == torch.float32 else "bfloat16"
        assert {"float", other} <= set(re.findall(r"\w+", error[1].lower())), error[1]


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_convert_integers(name: str) -> None:
    module, _ = modules(name, 3, 5, dtype=torch.float32)
    x = torch.ones(4, 2, 3, dtype=torch.int64)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert refusal(partial(run_stack, x, detached(module), module.mode))[0] is RuntimeError
        cell = getattr(fusedrnn, name + "Cell")(3, 5)
        assert refusal(partial(cell, x[0]))[0] is RuntimeError


@pytest.mark.cpu_only("torch.nn has no complex kernels elsewhere")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_numbers_give_torchs_results_and_gradients(
    name: str, dtype: torch.dtype, bidirectional: bool
) -> None:
    x, hx = (
        torch.randn(4, 2, 3, dtype=dtype),
        states(name, 2 + 2 * bidirectional, 2, 5, dtype=dtype),
    )
    results = []
    for module in modules(name, 3, 5, 2, dtype=dtype, bidirectional=bidirectional):
        v = x.clone().requires_grad_()
        outputs = tensors_of(module(v, hx))
        torch.stack([t.abs().sum() for t in outputs]).sum().backward()
        results.append([*outputs, v.grad, *(p.grad for p in module.parameters())])
    # Complex gates have poles, near which float32 gradients lose digits.
    rtol, atol = (1e-3, 1e-4) if dtype == torch.complex64 else (1e-9, 1e-12)
    torch.testing.assert_close(results[0], results[1], rtol=rtol, atol=atol)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_cell_operator_without_states_of_c_returns_one(mode: str, requires_grad: bool) -> None:
    gates = GATES[mode]
    x, h, w_ih, w_hh = randn(2, 3), randn(2, 5), randn(gates * 5, 3), randn(gates * 5, 5)
    w_ih.requires_grad_(requires_grad)
    h_1, c_1 = torch.ops.fusedrnn.cell(x, h, None, w_ih, w_hh, None, None, mode)
    assert h_1.shape == (2, 5)
    if mode == "LSTM":
        expected = reference.lstm_cell(x, h, torch.zeros(2, 5, dtype=F64), w_ih, w_hh)
        torch.testing.assert_close((h_1, c_1), expected)


FEW: list[dict[str, Any]] = [
    {"T": T, "B": B, "H": H, "I": I}
    for T, B, H, I in (  # noqa: E741
        *product((1, 2, 4, 16), (1, 2, 3, 7), (37,), (3,)),
        *product((1,), (1, 3), (5, 256, 300, 512), (3, 300)),
        *product((2, 4, 16), (2,), (5,), (3, 300)),
        *((2, 1, 300, 300), (2, 7, 300, 300), (4, 3, 300, 300), (16, 2, 300, 300)),
        *((1, 7, 512, 3), (2, 3, 512, 3), (4, 1, 512, 3), (16, 1, 512, 3)),
        *((1, 7, 256, 300), (4, 7, 256, 300)),
    )
]


@pytest.mark.parametrize("problem", each(MODES, FEW), ids=str)
def test_few_steps_are_as_accurate_as_torch(problem: Problem) -> None:
    torch.set_num_threads(1)
    check(problem)


FEW_OTHERWISE: list[dict[str, Any]] = [
    {"T": T, "B": B, "H": H, "I": I, **options}
    for T, B, H, I in ((1, 3, 37, 3), (2, 1, 300, 300), (4, 2, 5, 300), (16, 7, 37, 3))  # noqa: E741
    for options in (
        {"bidirectional": True, "hx": "grad", "L": 2},
        {"P": 3, "hx": "grad"},
        {"P": 3, "bidirectional": True},
        {"dtype": F64, "bias": False},
        {"dtype": torch.bfloat16},
        {"form": "unsorted", "hx": "grad"},
    )
]
PROJECTED: list[dict[str, Any]] = [
    {"T": T, "B": B, "H": H, "P": P, "I": 300}
    for T, B, H, P in ((1, 1, 300, 33), (1, 7, 512, 100), (2, 3, 256, 64), (4, 2, 37, 36))
]


@pytest.mark.parametrize("problem", each(MODES, FEW_OTHERWISE + PROJECTED), ids=str)
def test_few_steps_of_every_kind_are_as_accurate_as_torch(problem: Problem) -> None:
    torch.set_num_threads(1)
    check(problem)


@pytest.mark.cpu_only("elsewhere the matrix product's own kernel depends on the batch")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("H", [5, 37, 300, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_single_step_of_a_row_is_the_same_in_any_batch(mode: str, H: int, threads: int) -> None:
    torch.set_num_threads(threads)
    name = name_of(mode)
    options = {"nonlinearity": mode[4:].lower()} if name == "RNN" else {}
    module = getattr(fusedrnn, name)(30, H, **options).requires_grad_(False)
    x, hx = torch.randn(1, 7, 30), states(name, 1, 7, H)
    together = tensors_of(module(x, hx))
    for first, last in ((0, 1), (6, 7), (0, 2), (2, 5), (1, 7)):
        rows = slice(first, last)
        own = tuple(h[:, rows] for h in hx) if name == "LSTM" else hx[:, rows]
        for all_rows, some in zip(together, tensors_of(module(x[:, rows], own)), strict=True):
            assert torch.equal(all_rows[:, rows], some)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_inference_of_few_steps_is_as_accurate_as_training(mode: str, threads: int) -> None:
    torch.set_num_threads(threads)
    name = name_of(mode)
    options = {"nonlinearity": mode[4:].lower()} if name == "RNN" else {}
    for T, B, H, I in ((1, 1, 512, 300), (1, 3, 37, 3), (2, 7, 256, 300), (4, 2, 300, 3)):  # noqa: E741
        ours, theirs = modules(name, I, H, 2, dtype=torch.float32, bidirectional=True, **options)
        x = torch.randn(T, B, I)
        with torch.no_grad():
            found, measure = tensors_of(ours(x)), tensors_of(theirs(x))
            exact = tensors_of(theirs.double()(x.double()))
        for values in zip(found, measure, exact, strict=True):
            assert_as_accurate_as(*values)


def odd_states(*shape: int) -> list[Any]:
    h = torch.zeros(shape)
    return [(h, h, h), [h, h, h], torch.zeros(2, *shape), torch.zeros(3, *shape)]


def same_refusal(ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    expected = refusal(theirs)
    actual = refusal(ours)
    assert actual[0] is expected[0]
    # torch.nn's TypeError lists the overloads of a function that is not ours.
    assert actual[1] == expected[1] or expected[0] is TypeError


@pytest.mark.parametrize("which", range(4))
def test_states_that_are_no_pair_are_refused_where_torch_does(which: int) -> None:
    ours, theirs = modules("LSTM", 3, 5, dtype=torch.float32)
    rows = packed([torch.randn(4, 3), torch.randn(2, 3)])
    hx = odd_states(1, 2, 5)[which]
    for x in (torch.randn(4, 2, 3), rows):
        same_refusal(partial(ours, x, hx), partial(theirs, x, hx))
    ours, theirs = modules("LSTMCell", 3, 5, dtype=torch.float32)
    hx = odd_states(2, 5)[which]
    same_refusal(partial(ours, torch.randn(2, 3), hx), partial(theirs, torch.randn(2, 3), hx))


def test_unbatched_input_and_unsorted_rows_take_the_first_two_states_as_in_torch() -> None:
    ours, theirs = modules("LSTMCell", 3, 5)
    x, hx = randn(3), [randn(5) for _ in range(3)]
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))
    ours, theirs = modules("LSTM", 3, 5)
    x, hx = randn(4, 3), [randn(1, 5) for _ in range(3)]
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))
    torch.testing.assert_close(ours(x, torch.stack(hx)), theirs(x, torch.stack(hx)))
    rows = packed([randn(2, 3), randn(4, 3)], enforce_sorted=False)
    hx = [randn(1, 2, 5) for _ in range(3)]
    torch.testing.assert_close(tensors_of(ours(rows, hx)), tensors_of(theirs(rows, hx)))

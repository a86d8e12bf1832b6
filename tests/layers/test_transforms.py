"""Derivatives of any order and mode by torch.func and autograd, and their nesting with vmap, held
to torch.nn in float64. Where kernels serve them, the operators that ran are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from support.oracle import pair, states, tensors_of
from support.transforming import (
    CELLS,
    B,
    Calls,
    H,
    I,
    T,
    V,
    double_pair,
    draw,
    each_case,
    each_name,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    loop,
    loss_of,
    output_of,
    plain,
    vjp,
    vmap,
    weights_of,
)
from support.transforming import (
    only_warnings_of_ours as only_warnings_of_ours,
)


@each_case
def test_forward_mode_equals_torch_and_float32_runs(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    x, hx, w = draw(T, B, I), plain(ours, ()), weights_of(ours)
    tangents = torch.utils._pytree.tree_map(torch.randn_like, (w, x, hx))
    found = jvp(output_of(ours), (w, x, hx), tangents)
    expected = jvp(output_of(theirs), (w, x, hx), tangents)
    torch.testing.assert_close(found, expected)
    ours.float()
    single = torch.utils._pytree.tree_map(Tensor.float, ((w, x, hx), tangents))
    rounded = torch.utils._pytree.tree_map(Tensor.float, expected)
    torch.testing.assert_close(jvp(output_of(ours), *single), rounded, rtol=1e-4, atol=1e-5)


@each_name
@pytest.mark.parametrize("which", ["input", "weight_hh_l0", "hx"])
def test_a_dual_tensor_anywhere_carries_its_tangent(name: str, which: str) -> None:
    ours, theirs = double_pair(name)
    x, hx, w = draw(T, B, I), plain(ours, ()), weights_of(ours)
    found = []
    for module in (ours, theirs):
        with forward_ad.dual_level():

            def dual(t: Tensor) -> Any:
                return forward_ad.make_dual(t, t.cos())

            v = dual(x) if which == "input" else x
            h = torch.utils._pytree.tree_map(dual, hx) if which == "hx" else hx
            own = w | {which: dual(w[which])} if which in w else w
            found.append(tuple(forward_ad.unpack_dual(output_of(module)(own, v, h))))
    torch.testing.assert_close(*found)


@each_case
def test_jacobians_of_both_modes_equal_torchs(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    x, w = draw(2, B, I), weights_of(ours)
    expected = jacrev(output_of(theirs), argnums=(0, 1))(w, x)
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(output_of(ours), argnums=(0, 1))(w, x), expected)
    by_input = jacrev(lambda v: output_of(ours)(w, v))
    with Calls() as calls:
        torch.testing.assert_close(by_input(x), expected[1])
    assert calls.fused[1] == ours.num_layers
    assert not calls.steps


@each_name
def test_hessians_by_any_pair_of_modes_equal_torchs(name: str) -> None:
    ours, theirs = double_pair(name, 2, 2)
    x, w = draw(2, 1, 2), weights_of(ours)
    expected = hessian(loss_of(theirs), argnums=(0, 1))(w, x)
    for outer in (jacfwd, jacrev):
        for inner in (jacfwd, jacrev):
            by_weights = outer(inner(loss_of(ours), argnums=(0, 1)), argnums=(0, 1))
            torch.testing.assert_close(by_weights(w, x), expected)


@each_name
def test_linearize_equals_the_jacobian(name: str) -> None:
    ours, theirs = double_pair(name, num_layers=2)
    x, v, w = draw(T, B, I), draw(T, B, I), weights_of(ours)
    value, push = linearize(lambda x: output_of(ours)(w, x), x)
    expected = jvp(lambda x: output_of(theirs)(w, x), (x,), (v,))
    torch.testing.assert_close((value, push(v)), expected)
    torch.testing.assert_close(push(2 * v), 2 * expected[1])


@each_case
def test_gradients_may_be_batched(case: Any) -> None:
    name, options = case
    found = []
    for module in double_pair(name, **options):
        torch.manual_seed(0)
        x = draw(T, B, I).requires_grad_()
        results = tensors_of(module(x))
        slopes = [draw(V, *t.shape) for t in results]
        leaves = [x, *module.parameters()]
        found.append(
            torch.autograd.grad(results, leaves, slopes, retain_graph=True, is_grads_batched=True)
        )
        found.append(torch.autograd.grad(results, x, slopes, is_grads_batched=True))
    torch.testing.assert_close(found[:2], found[2:])


@each_name
def test_transforms_nest_in_any_order(name: str) -> None:
    ours, theirs = double_pair(name, num_layers=2)
    w = weights_of(ours)
    x, many = draw(V, T, B, I), draw(2, V, T, B, I)

    def f(module: Any) -> Callable[..., Any]:
        return lambda v: loss_of(module)(w, v)

    def by_weights(module: Any) -> Callable[..., Any]:
        return lambda v: grad(lambda w: loss_of(module)(w, v))(w)

    with Calls() as calls:
        found = vmap(vmap(grad(f(ours))))(many)
    assert calls.fused == (2, 2)
    torch.testing.assert_close(found, loop(lambda m: loop(grad(f(theirs)), m), many))
    found = vmap(vmap(by_weights(ours)))(many)
    torch.testing.assert_close(found, loop(lambda m: loop(by_weights(theirs), m), many))

    def total(module: Any, mapped: Any) -> Callable[..., Any]:
        return lambda v: mapped(grad(f(module)), v).square().sum()

    def ours_mapped(g: Any, v: Tensor) -> Any:
        return vmap(g)(v)

    expected = grad(total(theirs, loop))(x)
    torch.testing.assert_close(grad(total(ours, ours_mapped))(x), expected)
    found = jvp(total(ours, ours_mapped), (x,), (x,))[1]
    torch.testing.assert_close(found, (expected * x).sum())
    found = vmap(lambda v: jvp(grad(f(ours)), (v,), (v,))[1])(x)
    expected = loop(lambda v: jvp(grad(f(theirs)), (v,), (v,))[1], x)
    torch.testing.assert_close(found, expected)
    found = vmap(grad(lambda v: jvp(f(ours), (v,), (v,))[1]))(x)
    expected = loop(grad(lambda v: jvp(f(theirs), (v,), (v,))[1]), x)
    torch.testing.assert_close(found, expected)


@each_name
def test_third_derivatives_equal_torchs(name: str) -> None:
    found = []
    for module in double_pair(name, 2, 2):
        torch.manual_seed(0)
        w, x = weights_of(module), draw(2, 1, 2)

        def directional(v: Tensor, module: Any = module, w: Any = w, x: Any = x) -> Tensor:
            return loss_of(module)(w, x + v * x.cos())

        s = torch.tensor(0.3, dtype=torch.float64)
        found.append(grad(grad(grad(directional)))(s))
        v = s.clone().requires_grad_()
        slope = directional(v)
        for _ in range(3):
            (slope,) = torch.autograd.grad(slope, v, create_graph=True)
        found.append(slope.detach())
    torch.testing.assert_close(found[1:], [found[0]] * 3)


@each_name
def test_a_gradient_that_is_not_differentiated_again_costs_no_definition(name: str) -> None:
    ours, _ = pair(name, I, H, 2)
    x = torch.randn(T, B, I, requires_grad=True)
    with Calls() as calls:
        (slope,) = torch.autograd.grad(ours(x)[0].sum(), x, create_graph=True)
    assert calls.fused == (2, 2)
    assert not calls.steps
    with Calls() as calls:
        slope.square().sum().backward()
    assert calls.steps >= 2 * T


@each_name
def test_vjp_serves_several_cotangents_alone_and_mapped(name: str) -> None:
    ours, theirs = double_pair(name, num_layers=2)
    x, w = draw(T, B, I), weights_of(ours)
    value, pull = vjp(output_of(ours), w, x)
    _, expected = vjp(output_of(theirs), w, x)
    slopes = draw(V, *value.shape)
    for slope in slopes:
        torch.testing.assert_close(pull(slope), expected(slope))
    torch.testing.assert_close(vmap(pull)(slopes), loop(expected, slopes))
    # In its cotangent it is linear, forward mode included.
    torch.testing.assert_close(jvp(pull, (slopes[0],), (slopes[1],))[1], expected(slopes[1]))


@each_name
@pytest.mark.parametrize("outer", [jacfwd, jacrev])
def test_a_pullback_kept_from_another_transform_can_be_differentiated(
    name: str, outer: Any
) -> None:
    ours, theirs = double_pair(name, 2, 3)
    x = draw(2, 1, 2)
    w = weights_of(ours)
    ct = draw(output_of(ours)(w, x).numel())
    expected = outer(lambda v: vjp(lambda u: output_of(theirs)(w, u), v)[1](ct)[0])(x)
    found = outer(lambda v: vjp(lambda u: output_of(ours)(w, u), v)[1](ct)[0])(x)
    torch.testing.assert_close(found, expected)
    _, pull = vjp(lambda v: vjp(lambda u: output_of(ours)(w, u), v)[1](ct)[0], x)
    slope = draw(*x.shape)
    torch.testing.assert_close(pull(slope)[0], torch.tensordot(slope, expected, 3))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_cells_transform_as_torchs(name: str, bias: bool) -> None:
    ours, theirs = double_pair(name, I, H, bias)
    x, hx = draw(V, B, I), states(name, V, B, H, dtype=torch.float64)
    w = weights_of(ours)
    with Calls() as calls:
        found = vmap(ours)(x, hx)
    assert calls.fused == (1, 0)
    torch.testing.assert_close(found, loop(theirs, x, hx))
    torch.testing.assert_close(vmap(ours)(x[:, 0]), loop(theirs, x[:, 0]))
    found = vmap(grad(loss_of(ours), argnums=(0, 1, 2)), in_dims=(None, 0, 0))(w, x, hx)
    expected = loop(lambda v, h: grad(loss_of(theirs), argnums=(0, 1, 2))(w, v, h), x, hx)
    torch.testing.assert_close(found, expected)
    stacked = {k: torch.stack([p, 2 * p, -p]) for k, p in w.items()}
    found, expected = vmap(output_of(ours))(stacked, x), loop(output_of(theirs), stacked, x)
    torch.testing.assert_close(found, expected)
    found = hessian(lambda v: loss_of(ours)(w, v))(x[0, :1])
    torch.testing.assert_close(found, hessian(lambda v: loss_of(theirs)(w, v))(x[0, :1]))


@each_name
def test_complex_numbers_transform_by_the_definition(name: str) -> None:
    ours, theirs = pair(name, I, H, 2, dtype=torch.complex128)
    x = torch.randn(V, T, B, I, dtype=torch.complex128)
    torch.testing.assert_close(vmap(ours)(x), loop(theirs, x))

    def slope(module: Any) -> Any:
        return grad(lambda v: module(v)[0].abs().sum())

    torch.testing.assert_close(vmap(slope(ours))(x), loop(slope(theirs), x))


@each_name
def test_functionalize_and_make_fx_see_one_operator_a_layer(name: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    ours, theirs = double_pair(name, num_layers=2)
    x, w = draw(V, T, B, I), weights_of(ours)
    torch.testing.assert_close(functionalize(ours)(x[0]), theirs(x[0]))

    def mapped(w: Any, x: Tensor) -> Any:
        return vmap(grad(loss_of(ours), argnums=1), in_dims=(None, 0))(w, x)

    traced = make_fx(mapped)(w, x)
    names = Counter(str(node.target) for node in traced.graph.nodes)
    assert names["fusedrnn.layer.default"] == names["fusedrnn.layer_backward.default"] == 2
    torch.testing.assert_close(traced(w, x), mapped(w, x))

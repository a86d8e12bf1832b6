"""Modules under vmap, held to loops over torch.nn: over data, states, weights and both, forward and
back. Samples that share weights are rows of one fused call, which is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import stack_module_state
from torch.nn.utils.rnn import PackedSequence

from support.oracle import pair, tensors_of
from support.transforming import (
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
    grad,
    jacrev,
    jvp,
    loop,
    loss_of,
    output_of,
    plain,
    vmap,
    weights_of,
)
from support.transforming import (
    only_warnings_of_ours as only_warnings_of_ours,
)


@each_case
def test_vmap_over_data_is_one_fused_call_a_layer(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    x, hx = draw(V, T, B, I), plain(ours, (V,))
    with Calls() as calls:
        found = vmap(ours)(x, hx)
    assert calls.fused == (ours.num_layers, 0)
    assert not calls.steps
    torch.testing.assert_close(found, loop(theirs, x, hx))
    torch.testing.assert_close(vmap(ours)(x), loop(theirs, x))


@each_name
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_vmap_maps_any_dimension_in_and_out(name: str, dim: int) -> None:
    ours, theirs = double_pair(name, 3, H)
    x = draw(3, 3, 3, 3)
    found = vmap(lambda v: ours(v)[0], in_dims=dim, out_dims=dim)(x)
    expected = loop(lambda v: theirs(v)[0], x.movedim(dim, 0)).movedim(0, dim)
    torch.testing.assert_close(found, expected)


@each_name
@pytest.mark.parametrize("options", [{}, {"batch_first": True}], ids=str)
def test_vmap_over_unbatched_sequences_equals_a_batch(name: str, options: Any) -> None:
    ours, theirs = double_pair(name, **options)
    x = draw(V, T, I)
    torch.testing.assert_close(vmap(ours)(x), loop(theirs, x))


@each_case
def test_states_alone_or_input_alone_may_be_mapped(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    x, hx = draw(V, T, B, I), plain(ours, (V,))
    one = torch.utils._pytree.tree_map(lambda t: t[0], hx)
    found = vmap(ours, in_dims=(None, 0))(x[0], hx)
    torch.testing.assert_close(found, loop(lambda h: theirs(x[0], h), hx))
    found = vmap(ours, in_dims=(0, None))(x, one)
    torch.testing.assert_close(found, loop(lambda v: theirs(v, one), x))
    if name == "LSTM":  # of h and c, one
        found = vmap(ours, in_dims=(None, (0, None)))(x[0], (hx[0], one[1]))
        torch.testing.assert_close(found, loop(lambda h: theirs(x[0], (h, one[1])), hx[0]))


@each_case
def test_packed_rows_may_be_mapped_but_not_their_lengths(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    data, sizes = draw(V, 7, I), torch.tensor([3, 2, 2], device="cpu")

    def through(module: Any) -> Any:
        def call(rows: Tensor) -> Any:
            output, hx = module(PackedSequence(rows, sizes))
            return output.data, hx

        return call

    def slope(module: Any) -> Any:
        return grad(lambda rows: through(module)(rows)[0].square().sum())

    def their_slope(rows: Tensor) -> Tensor:  # functorch cannot read their batch sizes
        rows = rows.clone().requires_grad_()
        return torch.autograd.grad(through(theirs)(rows)[0].square().sum(), rows)[0]

    with Calls() as calls:
        found = vmap(through(ours))(data)
    assert calls.fused == (ours.num_layers, 0)
    torch.testing.assert_close(found, loop(through(theirs), data))
    with Calls() as calls:
        found = vmap(slope(ours))(data)
    assert calls.fused == (ours.num_layers, ours.num_layers)
    torch.testing.assert_close(found, loop(their_slope, data))
    along = jvp(lambda rows: slope(ours)(rows), (data[0],), (data[1],))[1]
    step = 1e-6 * data[1]
    difference = (their_slope(data[0] + step) - their_slope(data[0] - step)) / 2e-6
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-6)

    weights = [w for group in ours.all_weights for w in group]

    def ragged(rows: Tensor, lengths: Tensor) -> Any:
        arguments = (rows, lengths, None, None, weights[: len(weights) // ours.num_layers])
        return torch.ops.fusedrnn.layer(*arguments, ours.mode, ours.bias, False)[0]

    with pytest.raises(RuntimeError, match="batch_sizes must be the same for every sample"):
        vmap(ragged)(data, sizes.expand(V, 3))


@each_case
def test_gradients_of_a_mapped_call_are_fused_and_summed(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    x = draw(V, T, B, I)
    found = []
    for module in (ours, theirs):
        mapped = vmap(module) if module is ours else lambda v: loop(theirs, v)
        v = x.clone().requires_grad_()
        with Calls() as calls:
            loss = torch.stack([t.square().sum() for t in tensors_of(mapped(v))]).sum()
            found.append(torch.autograd.grad(loss, [v, *module.parameters()]))
        if module is ours:
            assert calls.fused == (ours.num_layers, ours.num_layers)
    torch.testing.assert_close(*found)
    mapped = grad(lambda w: vmap(loss_of(ours), in_dims=(None, 0))(w, x).sum())(weights_of(ours))
    torch.testing.assert_close(list(mapped.values()), list(found[1][1:]))


@each_case
def test_each_samples_gradient_of_input_and_states_is_one_fused_backward(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    x, hx, w = draw(V, T, B, I), plain(ours, (V,)), weights_of(ours)

    def slopes(module: Any) -> Any:
        return grad(lambda v, h: loss_of(module)(w, v, h), argnums=(0, 1))

    with Calls() as calls:
        found = vmap(slopes(ours))(x, hx)
    assert calls.fused == (ours.num_layers, ours.num_layers)
    assert not calls.steps
    torch.testing.assert_close(found, loop(slopes(theirs), x, hx))


@each_case
def test_each_samples_gradient_of_the_weights_equals_a_loop(case: Any) -> None:
    name, options = case
    ours, theirs = double_pair(name, **options)
    x, hx, w = draw(V, T, B, I), plain(ours, (V,)), weights_of(ours)
    with Calls() as calls:
        found = vmap(grad(loss_of(ours)), in_dims=(None, 0, 0))(w, x, hx)
    assert not calls.steps
    expected = loop(lambda v, h: grad(loss_of(theirs))(w, v, h), x, hx)
    torch.testing.assert_close(found, expected)
    # Of some of the weights only.
    some = {k: v for k, v in w.items() if "weight_hh" in k}
    rest = {k: v for k, v in w.items() if k not in some}
    found = vmap(grad(lambda s, v: loss_of(ours)(s | rest, v)), in_dims=(None, 0))(some, x)
    expected = loop(lambda v: grad(lambda s: loss_of(theirs)(s | rest, v))(some), x)
    torch.testing.assert_close(found, expected)


@each_case
@pytest.mark.parametrize("own_data", [False, True], ids=["one input", "own inputs"])
def test_an_ensemble_runs_fused_and_trains_as_its_members(case: Any, own_data: bool) -> None:
    name, options = case
    members = [double_pair(name, **options) for _ in range(V)]
    for i, (ours, theirs) in enumerate(members):
        torch.manual_seed(i)
        ours.reset_parameters()
        theirs.load_state_dict(ours.state_dict())
    base, other = members[0]
    w, _ = stack_module_state([ours for ours, _ in members])
    x = draw(V, T, B, I) if own_data else draw(T, B, I).expand(V, T, B, I)
    dims = (0, 0 if own_data else None)
    given = x if own_data else x[0]
    with Calls() as calls:
        found = vmap(output_of(base), in_dims=dims)(w, given)
    assert calls.fused == (V * base.num_layers, 0)
    assert not calls.steps
    torch.testing.assert_close(found, loop(output_of(other), w, x))
    found.square().sum().backward()
    expected = loop(grad(loss_of(other)), w, x)
    torch.testing.assert_close({k: p.grad for k, p in w.items()}, expected)
    detached = {k: p.detach() for k, p in w.items()}
    torch.testing.assert_close(vmap(grad(loss_of(base)), in_dims=dims)(detached, given), expected)


@each_name
def test_one_mapped_weight_among_shared_ones_is_enough(name: str) -> None:
    ours, theirs = double_pair(name)
    x, bias = draw(T, B, I), draw(V, *ours.bias_hh_l0.shape)

    def shifted(module: Any) -> Callable[..., Any]:
        w = weights_of(module)
        return lambda b: output_of(module)(w | {"bias_hh_l0": b}, x)

    torch.testing.assert_close(vmap(shifted(ours))(bias), loop(shifted(theirs), bias))
    found, expected = vmap(jacrev(shifted(ours)))(bias), loop(jacrev(shifted(theirs)), bias)
    torch.testing.assert_close(found, expected)


@each_name
def test_dropout_under_vmap_follows_its_randomness(name: str) -> None:
    ours, theirs = double_pair(name, num_layers=2, dropout=0.5)
    x = draw(T, B, I).expand(V, T, B, I)
    with pytest.raises(RuntimeError, match="called random operation while in randomness error"):
        vmap(ours)(x)
    torch.manual_seed(5)
    same, _ = vmap(ours, randomness="same")(x)
    torch.manual_seed(5)
    torch.testing.assert_close(same, theirs(x[0])[0].expand_as(same))
    different, _ = vmap(ours, randomness="different")(x)
    assert not torch.equal(different[0], different[1])
    # Also of what the mapping does not touch below the dropout.
    hx = plain(ours, (V,))
    for how, equal in (("same", True), ("different", False)):
        only = vmap(lambda h: ours(x[0])[0] + 0 * h.sum(), randomness=how)
        found = only(hx[0] if name == "LSTM" else hx)
        assert torch.equal(found[0], found[1]) == equal
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(vmap(ours)(x), loop(theirs, x))


@each_name
def test_mapped_gradients_with_dropout_use_the_masks_of_forward(name: str) -> None:
    ours, theirs = double_pair(name, num_layers=2, dropout=0.5)
    w, x = weights_of(ours), draw(V, T, B, I)
    torch.manual_seed(5)
    found = vmap(grad(loss_of(ours)), in_dims=(None, 0), randomness="same")(w, x)

    def seeded(v: Tensor) -> Any:
        torch.manual_seed(5)
        return grad(loss_of(theirs))(w, v)

    torch.testing.assert_close(found, loop(seeded, x))


@each_name
def test_empty_batches_and_single_samples_map(name: str) -> None:
    ours, theirs = double_pair(name, num_layers=2, bidirectional=True)
    for shape in ((V, T, 0, I), (1, T, B, I), (1, 1, 1, I)):
        x = draw(*shape)
        torch.testing.assert_close(vmap(ours)(x), loop(theirs, x))
        found = vmap(grad(lambda v: ours(v)[0].sum()))(x)
        torch.testing.assert_close(found, loop(grad(lambda v: theirs(v)[0].sum()), x))


@each_name
def test_half_precision_maps_and_differentiates(name: str) -> None:
    ours, _ = pair(name, I, H, 2, dtype=torch.bfloat16)
    x = torch.randn(V, T, B, I, dtype=torch.bfloat16)

    def f(v: Tensor) -> Any:
        return ours(v)[0].float().sum()

    assert torch.equal(vmap(ours)(x)[0], loop(ours, x)[0])
    # Going back, one sample is few rows, whose products stay in float32.
    torch.testing.assert_close(vmap(grad(f))(x), loop(grad(f), x), rtol=0.02, atol=0.01)

"""torch.func over our modules, held to loops over torch.nn: whatever a transform maps,
differentiates or nests, the results are those of one call after the other. Where kernels serve it,
the operators that ran are counted."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracle import pair, states, tensors_of, without_cudnn
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

untyped: Any = torch.func  # vjp's results are typed as two or three
functionalize, linearize, vmap = untyped.functionalize, untyped.linearize, untyped.vmap
grad, vjp, jvp = untyped.grad, untyped.vjp, untyped.jvp
jacfwd, jacrev, hessian = untyped.jacfwd, untyped.jacrev, untyped.hessian

NAMES = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True, "proj_size": 2},
]
CASES = [(n, o) for n in NAMES for o in OPTIONS if n == "LSTM" or "proj_size" not in o]
V, T, B, I, H = 3, 4, 2, 3, 5  # noqa: E741

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _only_warnings_of_ours() -> Iterator[None]:
    with warnings.catch_warnings():  # torch's forward-mode formulas are TorchScript
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        with without_cudnn():
            yield


class Calls(TorchDispatchMode):
    """Counts the operators that run, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.name()] += 1
        return func(*args, **(kwargs or {}))

    @property
    def fused(self) -> tuple[int, int]:
        """Calls of layer and of layer_backward."""
        return self.count["fusedrnn::layer"], self.count["fusedrnn::layer_backward"]

    @property
    def steps(self) -> int:
        """Activations computed one by one, as only the definition does."""
        return self.count["aten::tanh"]


def double_pair(name: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Ours and torch.nn's module in float64, where both must agree to rounding."""
    return pair(name, *(sizes or (I, H)), dtype=torch.float64, **options)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: p.detach() for k, p in module.named_parameters()}


def output_of(module: nn.Module) -> Callable[..., Tensor]:
    """A module as a function of its parameters and its arguments, all results as one vector."""

    def call(weights: Any, x: Any, hx: Any = None) -> Tensor:
        found = tensors_of(functional_call(module, weights, (x, hx)))
        return torch.cat([t.flatten() for t in found])

    return call


def loss_of(module: nn.Module) -> Callable[..., Tensor]:
    output = output_of(module)
    return lambda *arguments: output(*arguments).square().sum()


def loop(f: Callable[..., Any], *arguments: Any) -> Any:
    """What vmap(f) means where every argument is mapped over its first dimension."""
    leaves, spec = torch.utils._pytree.tree_flatten(arguments)
    results = [
        f(*torch.utils._pytree.tree_unflatten([t[i] for t in leaves], spec))
        for i in range(len(leaves[0]))
    ]
    flat = [torch.utils._pytree.tree_flatten(r) for r in results]
    columns = [torch.stack(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    return torch.utils._pytree.tree_unflatten(columns, flat[0][1])


def plain(module: Any, shape: tuple[int, ...]) -> Any:
    """States for a module of these options."""
    L, D = module.num_layers, 1 + module.bidirectional
    h = draw(*shape, L * D, B, module.proj_size or H)
    return (h, draw(*shape, L * D, B, H)) if module.mode == "LSTM" else h


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

    def through(module: Any) -> Callable[..., Any]:
        def call(rows: Tensor) -> Any:
            output, hx = module(PackedSequence(rows, sizes))
            return output.data, hx

        return call

    def slope(module: Any) -> Callable[..., Any]:
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

    def slopes(module: Any) -> Callable[..., Any]:
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

            def dual(t: Tensor) -> Tensor:
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
def test_empty_batches_and_single_samples_map(name: str) -> None:
    ours, theirs = double_pair(name, num_layers=2, bidirectional=True)
    for shape in ((V, T, 0, I), (1, T, B, I), (1, 1, 1, I)):
        x = draw(*shape)
        torch.testing.assert_close(vmap(ours)(x), loop(theirs, x))
        found = vmap(grad(lambda v: ours(v)[0].sum()))(x)
        torch.testing.assert_close(found, loop(grad(lambda v: theirs(v)[0].sum()), x))


@each_name
def test_complex_numbers_transform_by_the_definition(name: str) -> None:
    ours, theirs = pair(name, I, H, 2, dtype=torch.complex128)
    x = torch.randn(V, T, B, I, dtype=torch.complex128)
    torch.testing.assert_close(vmap(ours)(x), loop(theirs, x))

    def slope(module: Any) -> Callable[..., Any]:
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


@each_name
def test_half_precision_maps_and_differentiates(name: str) -> None:
    ours, _ = pair(name, I, H, 2, dtype=torch.bfloat16)
    x = torch.randn(V, T, B, I, dtype=torch.bfloat16)

    def f(v: Tensor) -> Any:
        return ours(v)[0].float().sum()

    assert torch.equal(vmap(ours)(x)[0], loop(ours, x)[0])
    assert torch.equal(vmap(grad(f))(x), loop(grad(f), x))

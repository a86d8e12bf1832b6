"""Lengths, resets, states and checkpoints through torch's transforms: vmap, torch.compile, export,
second derivatives, forward mode; and jagged input, which brings lengths of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from support.oracle import tensors_of
from support.problems import MODES
from support.theirs import SMOOTH, by_definition, name_of
from support.transforming import Calls, grad, jvp, loop, vmap
from support.transforming import only_warnings_of_ours as only_warnings_of_ours

V, T, B, I, H = 3, 6, 4, 3, 5  # noqa: E741
LENGTHS = torch.tensor([[4, 0, 6, 2], [6, 6, 6, 6], [1, 3, 0, 5]])  # [V, B]
EACH = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the definition's many small operators crawl on a busy machine


def made(mode: str, *sizes: int, **options: Any) -> Any:
    """Our module in float64, of two layers in both directions."""
    if mode.startswith("RNN"):
        options["nonlinearity"] = mode[4:].lower()
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64} | options
    return getattr(fusedrnn, name_of(mode))(*(sizes or (I, H)), **options)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def drawn_resets(*shape: int) -> Tensor:
    return torch.rand(shape) < 0.3


def drawn_states(module: Any, *rows: int) -> Any:
    """States of a module, of these leading sizes after L*D."""
    *many, B = rows
    shape = (*many, module.num_layers * (1 + module.bidirectional), B, module.hidden_size)
    return (draw(*shape), draw(*shape)) if module.mode == "LSTM" else draw(*shape)


def calling(by: Any, module: Any, *names: str, **fixed: Any) -> Any:
    """A module, or what it means, as a function of its input and these keywords."""
    call = by if by is module else lambda *x, **given: by(module, *x, **given)
    return lambda x, *given: call(x, **dict(zip(names, given, strict=True)), **fixed)


# --- vmap


@EACH
@pytest.mark.parametrize("shared", ["lengths", "resets", "both", "neither"])
def test_vmap_is_one_fused_call_a_layer(mode: str, shared: str) -> None:
    module, x = made(mode), draw(V, T, B, I)
    lengths, resets = LENGTHS, drawn_resets(V, T, B)
    dims = [
        0,
        None if shared in ("lengths", "both") else 0,
        None if shared in ("resets", "both") else 0,
    ]
    given = [v if dim == 0 else v[0] for v, dim in zip((lengths, resets), dims[1:], strict=True)]
    names = ("lengths", "resets")
    with Calls() as calls:
        found = vmap(calling(module, module, *names, return_states="all"), tuple(dims))(x, *given)
    assert calls.fused == (2, 0)
    assert not calls.steps
    every = [
        v if dim == 0 else v.expand(V, *v.shape) for v, dim in zip(given, dims[1:], strict=True)
    ]
    torch.testing.assert_close(
        found, loop(calling(by_definition, module, *names, return_states="all"), x, *every)
    )


@EACH
@pytest.mark.parametrize("mapped", [False, True])
def test_reset_states_may_be_mapped_or_shared(mode: str, mapped: bool) -> None:
    module, x, resets = made(mode), draw(V, T, B, I), drawn_resets(T, B)
    for rows in (1, B):
        others = drawn_states(module, V, rows) if mapped else drawn_states(module, rows)
        dims = (0, 0 if mapped else None)
        found = vmap(calling(module, module, "reset_state", resets=resets), dims)(x, others)
        of_each = calling(by_definition, module, "reset_state", resets=resets)
        for i in range(V):
            own = torch.utils._pytree.tree_map(lambda s, i=i: s[i], others) if mapped else others
            alone = tensors_of(of_each(x[i], own))
            torch.testing.assert_close(tuple(v[i] for v in tensors_of(found)), alone)


@EACH
def test_samples_gradients_are_those_of_each_alone(mode: str) -> None:
    module, x = made(mode), draw(V, T, B, I)
    resets, others = drawn_resets(V, T, B), drawn_states(module, V, 1)
    weights = {key: w.detach() for key, w in module.named_parameters()}

    def slopes(by_kernels: bool) -> Any:
        def loss(weights: Any, x: Tensor, others: Any, lengths: Tensor, resets: Tensor) -> Any:
            given = {"lengths": lengths, "resets": resets, "reset_state": others}
            given["return_states"] = True
            if by_kernels:
                found = torch.func.functional_call(module, weights, (x,), given)
            else:
                with nn.utils.stateless._reparametrize_module(module, weights):
                    found = by_definition(module, x, **given)
            return torch.stack([v.square().sum() for v in tensors_of(found)]).sum()

        return grad(loss, argnums=(0, 1, 2))

    dims = (None, 0, 0, 0, 0)
    with Calls() as calls:
        found = vmap(slopes(True), dims)(weights, x, others, LENGTHS, resets)
    assert not calls.steps
    expected = [
        slopes(False)(
            weights,
            x[i],
            torch.utils._pytree.tree_map(lambda s, i=i: s[i], others),
            LENGTHS[i],
            resets[i],
        )
        for i in range(V)
    ]
    flat = [torch.utils._pytree.tree_leaves(each) for each in expected]
    columns = [torch.stack(column) for column in zip(*flat, strict=True)]
    torch.testing.assert_close(torch.utils._pytree.tree_leaves(found), columns)


@EACH
def test_gradients_of_a_mapped_call_are_fused(mode: str) -> None:
    module, resets = made(mode), drawn_resets(T, B)
    given = {"resets": resets, "return_states": True, "checkpoint_every": 2}
    x = draw(V, T, B, I).requires_grad_()
    leaves = [x, *module.parameters()]
    with Calls() as calls:
        mapped = vmap(calling(module, module, "lengths", **given))(x, LENGTHS)
        loss = torch.stack([v.square().sum() for v in tensors_of(mapped)]).sum()
        found = torch.autograd.grad(loss, leaves)
    assert calls.fused == (2, 2)
    alone = [
        by_definition(module, x[i], lengths=LENGTHS[i], resets=resets, return_states=True)
        for i in range(V)
    ]
    loss = torch.stack([v.square().sum() for v in tensors_of(alone)]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, leaves))


# --- torch.compile and export


def compare(module: Any, compiled: Any, x: Tensor, others: Any, **given: Any) -> None:
    """Equal results and gradients of a module and its compiled self."""
    eager = copy.deepcopy(module)
    for each in (module, eager):
        each.zero_grad()
    results = []
    for call, weights in ((compiled, module), (eager, eager)):
        own = torch.utils._pytree.tree_map(lambda s: s.detach().clone().requires_grad_(), others)
        found = tensors_of(call(x, reset_state=own, **given))
        slopes = [torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view(v.shape) for v in found]
        leaves = [*tensors_of(own), *weights.parameters()]
        results.append((found, torch.autograd.grad(found, leaves, slopes)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("name", "every"), [("LSTM", None), ("LSTM", "auto"), ("GRU", 3)])
def test_one_graph_serves_any_T_and_B(name: str, every: int | str | None) -> None:
    module = made(name, dtype=torch.float32)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T, B in ((7, 6), (9, 4), (12, 8)):  # none equal to another size
            lengths = torch.arange(B) * T // (B - 1)
            others = torch.utils._pytree.tree_map(Tensor.float, drawn_states(module, 1))
            compare(
                module,
                compiled,
                torch.randn(T, B, I),
                others,
                lengths=lengths,
                resets=drawn_resets(T, B),
                return_states="all",
                checkpoint_every=every,
            )


@pytest.mark.parametrize(("name", "strict"), [("LSTM", False), ("MGU", True)])
def test_an_exported_program_takes_any_T_and_B(name: str, strict: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = made(name, dtype=torch.float32)

        def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
            return self.rnn(x, lengths=lengths, resets=resets, return_states="all")

    model = Model().eval()
    T, B = torch.export.Dim("T", min=2, max=64), torch.export.Dim("B", min=2, max=64)
    example = (torch.randn(4, 3, I), torch.tensor([4, 2, 0]), drawn_resets(4, 3))
    program = torch.export.export(
        model, example, dynamic_shapes=({0: T, 1: B}, {0: B}, {0: T, 1: B}), strict=strict
    )
    exported: Any = program.module()
    for t, b in ((4, 3), (9, 2), (2, 7)):
        given = (torch.randn(t, b, I), torch.randint(0, t + 1, (b,)), drawn_resets(t, b))
        torch.testing.assert_close(exported(*given), model(*given))
    with pytest.raises(RuntimeError, match="lengths must be"):
        exported(torch.randn(4, 3, I), torch.tensor([4, 5, 0]), drawn_resets(4, 3))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_fake_tensors_tell_the_shapes(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        module = made(name)
        x = draw(T, B, I).requires_grad_()
        lengths, resets = torch.zeros(B, dtype=torch.int64), torch.zeros(T, B, dtype=torch.bool)
        y, _, states = module(
            x, lengths=lengths, resets=resets, return_states="all", checkpoint_every=2
        )
        (y.sum() + states.sum()).backward()
    assert y.shape == (T, B, 2 * H)
    assert states.shape == (2, T, B, 2 * H)
    assert x.grad is not None
    assert x.grad.shape == x.shape


# --- derivatives of other orders and modes


@pytest.mark.parametrize("mode", SMOOTH)
@pytest.mark.parametrize("every", [None, 2])
def test_second_derivatives_equal_finite_differences(mode: str, every: int | None) -> None:
    module = made(mode, 1, 2, num_layers=1)
    lengths, resets = torch.tensor([3, 1]), torch.tensor([[0, 1], [1, 0], [0, 1]]).bool()
    leaves = [
        draw(3, 2, 1),
        *tensors_of(drawn_states(module, 2)),
        *tensors_of(drawn_states(module, 1)),
    ]
    has_c = mode == "LSTM"

    def call(x: Tensor, *states: Tensor) -> Any:
        hx, others = (states[:2], states[2:]) if has_c else states
        given = {"lengths": lengths, "resets": resets, "reset_state": others}
        return tensors_of(module(x, hx, **given, return_states=True, checkpoint_every=every))

    assert torch.autograd.gradgradcheck(call, [v.requires_grad_() for v in leaves])
    penalty = torch.autograd.grad(
        [v.square().sum() for v in call(*leaves)], leaves, create_graph=True
    )
    loss = torch.stack([g.square().sum() for g in penalty]).sum()
    found = torch.autograd.grad(loss, list(module.parameters()))
    assert all(g.count_nonzero() for g in found)


@EACH
def test_forward_mode_equals_the_definition(mode: str) -> None:
    module, x = made(mode), draw(T, B, I)
    resets, others = drawn_resets(T, B), drawn_states(module, 1)
    fixed = {"lengths": LENGTHS[0], "resets": resets, "return_states": True}
    primals = (x, others)
    tangents = torch.utils._pytree.tree_map(torch.randn_like, primals)
    found, expected = (
        jvp(calling(by, module, "reset_state", **fixed), primals, tangents)
        for by in (module, by_definition)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", SMOOTH)  # complex numbers have no relu
def test_complex_numbers_go_by_the_definition(mode: str) -> None:
    module = made(mode, dtype=torch.complex128)
    x, resets = draw(T, B, I).to(torch.complex128), drawn_resets(T, B)
    given: Any = {"lengths": LENGTHS[0], "resets": resets, "return_states": "all"}
    torch.testing.assert_close(module(x, **given), by_definition(module, x, **given))


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_activation_checkpoints_and_hooks_on_saved_tensors_get_along(name: str) -> None:
    from torch.utils.checkpoint import checkpoint

    module, x, resets = made(name), draw(T, B, I).requires_grad_(), drawn_resets(T, B)
    given: Any = {"lengths": LENGTHS[0], "resets": resets, "return_states": True}
    leaves = [x, *module.parameters()]

    def slopes(found: Any) -> Any:
        loss = torch.stack([v.square().sum() for v in tensors_of(found)]).sum()
        return torch.autograd.grad(loss, leaves)

    expected = slopes(module(x, **given))
    again = slopes(checkpoint(module, x, use_reentrant=False, **given))
    assert all(map(torch.equal, again, expected))
    with torch.autograd.graph.save_on_cpu():
        assert all(map(torch.equal, slopes(module(x, **given)), expected))


# --- jagged input


def jagged(rows: Sequence[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor([*rows], layout=torch.jagged)


@EACH
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("states", [False, True, "all"])
def test_jagged_input_gives_what_each_row_gives_alone(
    mode: str, batch_first: bool, states: bool | str
) -> None:
    module, hx = made(mode, batch_first=batch_first), None
    rows = [draw(n, I).requires_grad_() for n in (4, 1, 6, 3)]
    hx = drawn_states(module, 4)
    found = module(jagged(rows), hx, return_states=states, checkpoint_every=2)
    y, final = found[:2]
    assert y.is_nested
    assert y.layout == torch.jagged
    kept = found[2] if states == "all" else found[2:]
    assert len(kept) == {False: 0, True: 1, "all": 2}[states]
    for b, row in enumerate(rows):
        own = torch.utils._pytree.tree_map(lambda s, b=b: s[:, b], hx)
        alone = by_definition(module, row, own, return_states=states)
        torch.testing.assert_close(y.unbind()[b], alone[0])
        torch.testing.assert_close([s[:, b] for s in tensors_of(final)], [*tensors_of(alone[1])])
        if states:
            torch.testing.assert_close(
                torch.stack([k.unbind()[b] for k in kept]),
                alone[2] if states == "all" else alone[2][None],
            )


@EACH
def test_gradients_reach_through_jagged_input(mode: str) -> None:
    module = made(mode)
    rows = [draw(n, I).requires_grad_() for n in (4, 1, 6, 3)]
    leaves = [*rows, *module.parameters()]
    y, final, kept = module(jagged(rows), return_states=True)
    values = [y.values(), *tensors_of(final), kept.values()]
    found = torch.autograd.grad(torch.stack([v.square().sum() for v in values]).sum(), leaves)
    alone = [by_definition(module, row, return_states=True) for row in rows]
    loss = torch.stack([v.square().sum() for v in tensors_of(alone)]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, leaves))


def test_jagged_rows_of_no_step_are_kept() -> None:
    module: Any = made("LSTM")
    hx = drawn_states(module, 3)
    rows = torch.nested.nested_tensor_from_jagged(draw(5, I), torch.tensor([0, 2, 2, 5]))
    y, (h_n, c_n) = module(rows, hx)
    assert [len(row) for row in y.unbind()] == [2, 0, 3]
    assert torch.equal(h_n[:, 1], hx[0][:, 1])
    assert torch.equal(c_n[:, 1], hx[1][:, 1])
    torch.testing.assert_close(
        y.unbind()[2], by_definition(module, rows.unbind()[2], tuple(s[:, 2] for s in hx))[0]
    )

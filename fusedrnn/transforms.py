"""What the layer operators mean under vmap, and their second derivatives.

Under vmap, samples that share their weights are rows of one larger batch: the mapped dimension is
folded into B, and one fused call runs them all, forward and back. Where each sample has weights of
its own (an ensemble) or wants a weight gradient of its own (per-sample gradients), there is one
fused call for each: the kernels have no product of many small matrices.

``stack`` and ``cell`` need no rule, being composed of ``layer``; dropout between layers is torch's
and follows vmap's ``randomness``.

A second derivative is one of the definition's backward pass. ``route`` tells, for explain(), which
way a call would go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _C, reference

Dim = int | None  # which dimension of a tensor is mapped, None for the same tensor in each sample


def _fold(x: Any, dim: Dim, V: int, batch: int) -> Any:  # None for a tensor that is not there
    """A tensor of V samples with the samples made rows of dimension ``batch``, innermost."""
    if x is None:
        return None
    if dim is None:
        x = x.unsqueeze(batch + 1)
        return x.expand(*x.shape[: batch + 1], V, *x.shape[batch + 2 :]).flatten(batch, batch + 1)
    return x.movedim(dim, batch + 1).flatten(batch, batch + 1)


def _unfold(x: Tensor, V: int, batch: int) -> Tensor:
    """The same as V samples again, dimension ``batch + 1``."""
    return x.reshape(*x.shape[:batch], x.size(batch) // V, V, *x.shape[batch + 1 :])


def _each(x: Any, dim: Any, V: int) -> list[Any]:
    """One argument, a tensor, None or a list of tensors, for each of V samples."""
    if isinstance(x, list | tuple):
        columns = [_each(item, d, V) for item, d in zip(x, dim, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]
    return [x] * V if dim is None else list(x.unbind(dim))


def _together(results: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*results, strict=True)]


def _refuse_ragged(dim: Dim) -> None:
    if dim is not None:
        raise RuntimeError(
            "fusedrnn: batch_sizes must be the same for every sample of a vmap, got mapped ones: "
            "map over the data of a PackedSequence alone"
        )


@torch.library.register_vmap("fusedrnn::layer")  # type: ignore[untyped-decorator]
def _(
    info: Any,
    in_dims: Any,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
    train: bool,
) -> tuple[Any, Any]:
    V, layer = info.batch_size, torch.ops.fusedrnn.layer.default
    x_dim, sizes_dim, h_dim, c_dim, w_dims = in_dims[:5]
    _refuse_ragged(sizes_dim)
    if any(dim is not None for dim in w_dims):
        arguments = zip(
            _each(input, x_dim, V),
            _each(hx, h_dim, V),
            _each(cx, c_dim, V),
            _each(weights, w_dims, V),
            strict=True,
        )
        results = [
            layer(x, batch_sizes, h, c, w, mode, has_biases, train) for x, h, c, w in arguments
        ]
        return tuple(_together(results)), (0, 0, 0, 0)
    rows = 1 if batch_sizes is None else 0
    y, h_n, c_n, reserve = layer(
        _fold(input, x_dim, V, rows),
        None if batch_sizes is None else batch_sizes * V,
        _fold(hx, h_dim, V, 1),
        _fold(cx, c_dim, V, 1),
        weights,
        mode,
        has_biases,
        train,
    )
    # What there is none of has one dimension and is the same for every sample.
    has_c, has_reserve = c_n.dim() > 1, reserve.dim() > 1
    outputs = (
        _unfold(y, V, rows),
        _unfold(h_n, V, 1),
        _unfold(c_n, V, 1) if has_c else c_n,
        _unfold(reserve, V, 1) if has_reserve else reserve,
    )
    return outputs, (rows + 1, 2, 2 if has_c else None, 2 if has_reserve else None)


@torch.library.register_vmap("fusedrnn::layer_backward")  # type: ignore[untyped-decorator]
def _(
    info: Any,
    in_dims: Any,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    output: Tensor,
    reserve: Tensor,
    mode: str,
    has_biases: bool,
    needs: Sequence[bool],
) -> tuple[Any, Any]:
    V, backward = info.batch_size, torch.ops.fusedrnn.layer_backward.default
    dy_dim, dh_dim, dc_dim, x_dim, sizes_dim, h_dim, c_dim, w_dims, y_dim, kept_dim = in_dims[:10]
    _refuse_ragged(sizes_dim)
    shared = all(dim is None for dim in w_dims)

    # How the reserve is laid out is the kernels' own affair, and differs with the batch. So only
    # the call that made it can be gone back through: of all samples, or of one.
    def forward_again(*operands: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            y, _, _, kept = torch.ops.fusedrnn.layer(*operands, mode, has_biases, True)
        return y, kept

    if shared and not any(needs[3:]):
        rows = 1 if batch_sizes is None else 0
        sizes = None if batch_sizes is None else batch_sizes * V
        operands = (
            _fold(input, x_dim, V, rows),
            sizes,
            _fold(hx, h_dim, V, 1),
            _fold(cx, c_dim, V, 1),
            weights,
        )
        if kept_dim is not None:
            y, kept = _fold(output, y_dim, V, rows), _fold(reserve, kept_dim, V, 1)
        elif reserve.dim() > 1:
            y, kept = forward_again(*operands)
        else:
            y, kept = _fold(output, y_dim, V, rows), reserve
        slopes = (
            _fold(grad_output, dy_dim, V, rows),
            _fold(grad_h_n, dh_dim, V, 1),
            _fold(grad_c_n, dc_dim, V, 1),
        )
        found = backward(*slopes, *operands, y, kept, mode, has_biases, needs)
        wheres = [w for w, need in zip((rows, 1, 1), needs, strict=False) if need]
        folded = [_unfold(g, V, where) for g, where in zip(found, wheres, strict=True)]
        return folded, [where + 1 for where in wheres]

    of_all = shared and kept_dim is not None
    arguments = zip(
        _each((grad_output, grad_h_n, grad_c_n), (dy_dim, dh_dim, dc_dim), V),
        _each((input, hx, cx), (x_dim, h_dim, c_dim), V),
        _each(weights, w_dims, V),
        [None] * V if of_all else _each((output, reserve), (y_dim, kept_dim), V),
        strict=True,
    )
    results = []
    for slopes, (x, h, c), w, made in arguments:
        operands = (x, batch_sizes, h, c, w)
        y, kept = forward_again(*operands) if made is None else made
        results.append(backward(*slopes, *operands, y, kept, mode, has_biases, needs))
    gradients = _together(results)
    return gradients, [0] * len(gradients)


def _second_backward(
    slopes: Sequence[Tensor | None],
    tensors: Sequence[Any],
    batch_sizes: Tensor | None,
    mode: str,
    has_biases: bool,
    needs: Sequence[bool],
    wanted: Sequence[bool],
) -> Sequence[Tensor]:
    """Gradients of layer_backward's results; see SecondBackward in csrc/ops/layer.h."""
    chosen = [t for t, want in zip(tensors, wanted, strict=True) if want]
    given = [s for s in slopes if s is not None]

    def first(*chosen: Tensor) -> list[Any]:
        values = iter(chosen)
        all_ = [next(values) if want else t for t, want in zip(tensors, wanted, strict=True)]
        dy, dh_n, dc_n, x, h, c, *weights = all_
        found = reference.layer_backward(
            dy, dh_n, dc_n, x, batch_sizes, h, c, weights, mode, has_biases
        )
        asked = [g for g, need in zip(found, needs, strict=True) if need]
        return [g for g, s in zip(asked, slopes, strict=True) if s is not None]

    functorch = torch._C._functorch
    wrapped = any(functorch.is_functorch_wrapped_tensor(t) for t in [*chosen, *given])
    if wrapped or functorch.peek_interpreter_stack() is not None:
        pull: Callable[[list[Any]], Sequence[Tensor]] = torch.func.vjp(first, *chosen)[1]
        return pull(given)
    # Plain autograd is the same, and gets along with hooks on saved tensors. Aliases: where one
    # tensor depends on another (h0 on x, tied weights) the engine adds up their gradients; a path
    # through the tensors themselves would count them twice.
    with torch.enable_grad():
        inputs = [t.view_as(t) for t in chosen]
        results = [(g, s) for g, s in zip(first(*inputs), given, strict=True) if g.requires_grad]
    return torch.autograd.grad(
        [g for g, _ in results],
        inputs,
        [s for _, s in results],
        create_graph=torch.is_grad_enabled(),
        materialize_grads=True,
    )


_C.set_second_backward(_second_backward)


@dataclass(frozen=True)
class Route:
    """Which way a call goes: by the kernels or, ``definition``, step by step in plain torch; how
    many samples of vmaps are folded into the batch; and why."""

    definition: bool
    folded: int
    training: bool
    reasons: tuple[str, ...]


@dataclass
class _Seen:
    """What a tensor carries, through all transforms: by level, samples and wanted gradients."""

    tangent: bool = False
    mapped: dict[int, int] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)


def _look_through(tensor: Tensor, seen: _Seen) -> None:
    functorch = torch._C._functorch
    while True:
        seen.tangent |= _C.has_tangent(tensor)
        wrapped = functorch.is_functorch_wrapped_tensor(tensor)
        level = functorch.maybe_get_level(tensor) if wrapped else 0
        if tensor.requires_grad:
            seen.wanted.add(level)
        if not wrapped:
            return
        inner = functorch.get_unwrapped(tensor)
        if functorch.is_batchedtensor(tensor):
            seen.mapped[level] = inner.size(functorch.maybe_get_bdim(tensor))
        tensor = inner


def route(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Route:
    """Which way a call with these inputs (data, states) and weights would go now."""
    own, shared = _Seen(), _Seen()
    for seen, tensors in ((own, inputs), (shared, weights)):
        for tensor in tensors:
            _look_through(tensor, seen)
    training = torch.is_grad_enabled() and bool(own.wanted | shared.wanted)
    why = []
    if own.tangent or shared.tangent:
        why.append("forward-mode AD: the kernels compute no tangents")
    if inputs[0].is_complex():
        why.append("complex numbers: the kernels compute real ones")
    if why:
        return Route(True, 1, training, tuple(why))
    folded = 1
    for level, V in sorted((own.mapped | shared.mapped).items()):
        if level in shared.mapped:
            why.append(f"vmap: {V} calls, because each sample has weights of its own")
            continue
        folded *= V
        why.append(f"vmap: {V} samples are rows of one batch")
        if training and any(inner > level for inner in shared.wanted):
            why.append(
                f"per-sample gradients: {V} calls, forward again and back, because each sample "
                "has weight gradients of its own"
            )
    return Route(False, folded, training, tuple(why))

"""What the layer operators mean under vmap.

Samples that share their weights are rows of one larger batch: the mapped dimension is folded into
B, and one fused call runs them all, forward and back. Where each sample has weights of its own (an
ensemble) or wants a weight gradient of its own (per-sample gradients), there is one fused call for
each: the kernels have no product of many small matrices.

``stack`` and ``cell`` need no rule, being composed of ``layer``; dropout between layers is torch's
and follows vmap's ``randomness``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .operands import (
    Cotangents,
    Kept,
    Operands,
    in_order,
    mapped_backward,
    mapped_layer,
    of_layer,
)

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


def _fold_reset(x: Any, dim: Dim, V: int, B: int) -> Any:
    """A reset state likewise, one for each row: each sample has a gradient of its own."""
    if x is None:
        return None
    x = x.unsqueeze(0) if dim is None else x.movedim(dim, 0)
    D, P = x.size(1), x.size(3)
    return x.expand(V, D, B, P).permute(1, 2, 0, 3).reshape(D, B * V, P)


def _each(x: Any, dim: Any, V: int) -> list[Any]:
    """One argument, a tensor, None or a list of tensors, for each of V samples."""
    if isinstance(x, list | tuple):
        columns = [_each(item, d, V) for item, d in zip(x, dim, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]
    return [x] * V if dim is None else list(x.unbind(dim))


def _together(results: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*results, strict=True)]


def _all_at_once(V: int, o: Operands, dims: Operands) -> Operands:
    """The layer that runs V samples of shared weights as one batch."""
    return o._replace(
        input=_fold(o.input, dims.input, V, o.batch),
        batch_sizes=None if o.batch_sizes is None else o.batch_sizes * V,
        hx=_fold(o.hx, dims.hx, V, 1),
        cx=_fold(o.cx, dims.cx, V, 1),
        lengths=_fold(o.lengths, dims.lengths, V, 0),
        resets=_fold(o.resets, dims.resets, V, 1),
        reset_h=_fold_reset(o.reset_h, dims.reset_h, V, _batch_of(o, dims)),
        reset_c=_fold_reset(o.reset_c, dims.reset_c, V, _batch_of(o, dims)),
    )


def _batch_of(o: Operands, dims: Operands) -> int:
    """B of one sample of padded input."""
    dim = dims.input
    return int(o.input.size(1 if dim is None or dim % o.input.dim() > 1 else 2))


def _one_by_one(V: int, o: Operands, dims: Operands) -> list[Operands]:
    """The layer of each sample."""
    names = ("input", "hx", "cx", "weights", "lengths", "resets", "reset_h", "reset_c")
    columns = [_each(getattr(o, name), getattr(dims, name), V) for name in names]
    rows = zip(*columns, strict=True)
    return [o._replace(**dict(zip(names, row, strict=True))) for row in rows]


def _shares_weights(dims: Operands) -> bool:
    if dims.batch_sizes is not None:
        raise RuntimeError(
            "fusedrnn: batch_sizes must be the same for every sample of a vmap, got mapped ones: "
            "map over the data of a PackedSequence alone"
        )
    return all(dim is None for dim in dims.weights)


@mapped_layer
def _layer(V: int, o: Operands, dims: Operands, kept: Kept) -> tuple[Any, Any]:
    layer = torch.ops.fusedrnn.layer.default
    if not _shares_weights(dims):
        results = [layer(*of_layer(each, kept)) for each in _one_by_one(V, o, dims)]
        return tuple(_together(results)), (0, 0, 0, 0, 0)
    y, h_n, c_n, reserve, states = layer(*of_layer(_all_at_once(V, o, dims), kept))
    # What there is none of has one dimension and is the same for every sample. So is a reserve of
    # packed rows of which each sample's share is no whole number; backward makes it again.
    has_c, has_states = c_n.dim() > 1, states.dim() > 1
    has_reserve = reserve.dim() > 1 and reserve.size(1) % V == 0
    outputs = (
        _unfold(y, V, o.batch),
        _unfold(h_n, V, 1),
        _unfold(c_n, V, 1) if has_c else c_n,
        _unfold(reserve, V, 1) if has_reserve else reserve,
        _unfold(states, V, o.batch) if has_states else states,
    )
    where: list[Dim] = [o.batch + 1, 2]
    for there, dim in ((has_c, 2), (has_reserve, 2), (has_states, o.batch + 1)):
        where.append(dim if there else None)
    return outputs, tuple(where)


def _forward_again(o: Operands, c: Cotangents) -> tuple[Tensor, Tensor]:
    """Output and reserve of a layer. How a reserve is laid out is the kernels' own affair, and
    differs with the batch: only the call that made it, of all samples or of one, can be gone back
    through."""
    with torch.no_grad():
        y, _, _, reserve, _ = torch.ops.fusedrnn.layer(*of_layer(o, Kept(True, False, *c[7:])))
    return y, reserve


def _backward_at_once(
    V: int, o: Operands, c: Cotangents, dims: Operands, slope_dims: Cotangents
) -> tuple[list[Tensor], list[int]]:
    """The gradients of input and states, which samples do not share."""
    whole = _all_at_once(V, o, dims)
    if slope_dims.reserve is None and c.reserve.dim() > 1:
        y, kept = _forward_again(whole, c)
    else:
        y = _fold(c.output, slope_dims.output, V, o.batch)
        kept = c.reserve
        if slope_dims.reserve is not None:
            kept = _fold(kept, slope_dims.reserve, V, 1)
    slopes = Cotangents(
        _fold(c.grad_output, slope_dims.grad_output, V, o.batch),
        _fold(c.grad_h_n, slope_dims.grad_h_n, V, 1),
        _fold(c.grad_c_n, slope_dims.grad_c_n, V, 1),
        y,
        kept,
        c.needs,
        _fold(c.grad_states, slope_dims.grad_states, V, o.batch),
        *c[7:],
    )
    found = torch.ops.fusedrnn.layer_backward.default(*in_order(whole, slopes))
    states = 3 + len(o.weights)  # where the reset states' needs begin; no weight's is asked for
    wheres = [w for w, need in zip((o.batch, 1, 1), c.needs, strict=False) if need]
    resets = [dims.reset_h, dims.reset_c], [o.reset_h, o.reset_c]
    asked = [(dim, x) for dim, x, need in zip(*resets, c.needs[states:], strict=False) if need]
    wheres_of_all = wheres + [1] * len(asked)
    folded = [_unfold(g, V, where) for g, where in zip(found, wheres_of_all, strict=True)]
    for i, (dim, x) in enumerate(asked, len(wheres)):
        if x.size(1 if dim is None or dim > 1 else 2) == 1:  # one for all rows
            folded[i] = folded[i].sum(1, keepdim=True)
    return folded, [where + 1 for where in wheres] + [2] * len(asked)


@mapped_backward
def _layer_backward(
    V: int, o: Operands, c: Cotangents, dims: Operands, slope_dims: Cotangents
) -> tuple[list[Tensor], list[int]]:
    shared = _shares_weights(dims)
    if shared and not any(c.needs[3 : 3 + len(o.weights)]):
        return _backward_at_once(V, o, c, dims, slope_dims)
    slopes = _each((*c[:3], c.grad_states), (*slope_dims[:3], slope_dims.grad_states), V)
    made_of_all = shared and slope_dims.output is not None and c.reserve.dim() > 1
    made = [None] * V if made_of_all else _each(c[3:5], slope_dims[3:5], V)
    results = []
    for each, own, results_of in zip(_one_by_one(V, o, dims), slopes, made, strict=True):
        y, kept = _forward_again(each, c) if results_of is None else results_of
        dy, dh_n, dc_n, dstates = own
        all_ = Cotangents(dy, dh_n, dc_n, y, kept, c.needs, dstates, *c[7:])
        results.append(torch.ops.fusedrnn.layer_backward.default(*in_order(each, all_)))
    gradients = _together(results)
    return gradients, [0] * len(gradients)


torch.library.register_vmap("fusedrnn::layer", _layer)
torch.library.register_vmap("fusedrnn::layer_backward", _layer_backward)

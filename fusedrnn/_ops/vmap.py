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

from .operands import Cotangents, Operands, in_order, mapped_backward, mapped_layer

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


def _all_at_once(V: int, o: Operands, dims: Operands) -> Operands:
    """The layer that runs V samples of shared weights as one batch."""
    return o._replace(
        input=_fold(o.input, dims.input, V, o.batch),
        batch_sizes=None if o.batch_sizes is None else o.batch_sizes * V,
        hx=_fold(o.hx, dims.hx, V, 1),
        cx=_fold(o.cx, dims.cx, V, 1),
    )


def _one_by_one(V: int, o: Operands, dims: Operands) -> list[Operands]:
    """The layer of each sample."""
    varying = [
        _each(x, dim, V) for x, dim in ((o.input, dims.input), (o.hx, dims.hx), (o.cx, dims.cx))
    ]
    rows = zip(*varying, _each(o.weights, dims.weights, V), strict=True)
    return [o._replace(input=x, hx=h, cx=c, weights=w) for x, h, c, w in rows]


def _shares_weights(dims: Operands) -> bool:
    if dims.batch_sizes is not None:
        raise RuntimeError(
            "fusedrnn: batch_sizes must be the same for every sample of a vmap, got mapped ones: "
            "map over the data of a PackedSequence alone"
        )
    return all(dim is None for dim in dims.weights)


@mapped_layer
def _layer(V: int, o: Operands, dims: Operands, train: bool) -> tuple[Any, Any]:
    layer = torch.ops.fusedrnn.layer.default
    if not _shares_weights(dims):
        results = [layer(*each, train) for each in _one_by_one(V, o, dims)]
        return tuple(_together(results)), (0, 0, 0, 0)
    y, h_n, c_n, reserve = layer(*_all_at_once(V, o, dims), train)
    # What there is none of has one dimension and is the same for every sample.
    has_c, has_reserve = c_n.dim() > 1, reserve.dim() > 1
    outputs = (
        _unfold(y, V, o.batch),
        _unfold(h_n, V, 1),
        _unfold(c_n, V, 1) if has_c else c_n,
        _unfold(reserve, V, 1) if has_reserve else reserve,
    )
    return outputs, (o.batch + 1, 2, 2 if has_c else None, 2 if has_reserve else None)


def _forward_again(o: Operands) -> tuple[Tensor, Tensor]:
    """Output and reserve of a layer. How a reserve is laid out is the kernels' own affair, and
    differs with the batch: only the call that made it, of all samples or of one, can be gone back
    through."""
    with torch.no_grad():
        y, _, _, reserve = torch.ops.fusedrnn.layer(*o, True)
    return y, reserve


def _backward_at_once(
    V: int, o: Operands, c: Cotangents, dims: Operands, slope_dims: Cotangents
) -> tuple[list[Tensor], list[int]]:
    """The gradients of input and states, which samples do not share."""
    whole = _all_at_once(V, o, dims)
    if slope_dims.reserve is None and c.reserve.dim() > 1:
        y, kept = _forward_again(whole)
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
    )
    found = torch.ops.fusedrnn.layer_backward.default(*in_order(whole, slopes))
    wheres = [w for w, need in zip((o.batch, 1, 1), c.needs, strict=False) if need]
    folded = [_unfold(g, V, where) for g, where in zip(found, wheres, strict=True)]
    return folded, [where + 1 for where in wheres]


@mapped_backward
def _layer_backward(
    V: int, o: Operands, c: Cotangents, dims: Operands, slope_dims: Cotangents
) -> tuple[list[Tensor], list[int]]:
    shared = _shares_weights(dims)
    if shared and not any(c.needs[3:]):
        return _backward_at_once(V, o, c, dims, slope_dims)
    slopes = _each(c[:3], slope_dims[:3], V)
    made_of_all = shared and slope_dims.reserve is not None
    made = [None] * V if made_of_all else _each(c[3:5], slope_dims[3:5], V)
    results = []
    for each, own, results_of in zip(_one_by_one(V, o, dims), slopes, made, strict=True):
        y, kept = _forward_again(each) if results_of is None else results_of
        dy, dh_n, dc_n = own
        arguments = in_order(each, Cotangents(dy, dh_n, dc_n, y, kept, c.needs))
        results.append(torch.ops.fusedrnn.layer_backward.default(*arguments))
    gradients = _together(results)
    return gradients, [0] * len(gradients)


torch.library.register_vmap("fusedrnn::layer", _layer)
torch.library.register_vmap("fusedrnn::layer_backward", _layer_backward)

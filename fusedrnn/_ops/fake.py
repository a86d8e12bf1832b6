"""What a layer's results look like without computing them, for torch.compile and its like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from .operands import Cotangents, Kept, Operands, on_backward, on_layer


def _rows(x: Tensor, batch_sizes: Tensor | None, hx: Tensor | None) -> Any:
    """B: an int, or a symbol under dynamic shapes."""
    if batch_sizes is None:
        return x.size(1)
    # Without states it is the first batch size, which only the data can tell.
    return torch.library.get_ctx().new_dynamic_size() if hx is None else hx.size(1)


@on_layer
def _layer(o: Operands, kept: Kept) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _C.check_fit(o)
    x, (w, *others) = o.input, o.named
    D, H, P = 1 + len(others), w.w_hh.size(0) // o.cell.gates, w.w_hh.size(1)
    B = _rows(x, o.batch_sizes, o.hx)
    N = x.size(0) // max(kept.every, 1) * (x.size(1) if o.batch_sizes is None else 1)
    width = 0
    if kept.train:
        dtype = str(x.dtype).removeprefix("torch.")
        projected = 0 if w.w_hr is None else P
        width = _C.reserve_width(o.mode, dtype, H, projected, x.device.type, kept.every)
    return (
        x.new_empty((*x.shape[:-1], D * P)),
        x.new_empty((D, B, P)),
        x.new_empty((D, B, H) if o.cell.has_c else (0,)),
        x.new_empty((D, N, width) if kept.train else (0,)),
        x.new_empty((*x.shape[:-1], D * H) if kept.states and o.cell.has_c else (0,)),
    )


@on_backward
def _layer_backward(o: Operands, c: Cotangents) -> list[Tensor]:
    _C.check_fit(o, backward=c.fit())
    inputs = (o.input, o.hx, o.cx, *o.weights, o.reset_h, o.reset_c)
    return [
        x.new_empty(x.shape)
        for x, need in zip(inputs, c.needs, strict=False)
        if need and x is not None
    ]


def _frozen(
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    number: int,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    states: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    L, D, H, P, has_c = _C.frozen_shape(number)
    B, steps = _rows(x, batch_sizes, hx), x.shape[:-1]
    kept: tuple[Any, ...] = (0,)
    if states == 2:
        kept = (L, *steps, D * H)
    elif states == 1 and has_c:  # without c the output is the top layer's state
        kept = (*steps, D * H)
    return (
        x.new_empty((*steps, D * P)),
        x.new_empty((L * D, B, P)),
        x.new_empty((L * D, B, H) if has_c else (0,)),
        x.new_empty(kept),
    )


torch.library.register_fake("fusedrnn::layer", _layer)
torch.library.register_fake("fusedrnn::frozen", _frozen)
torch.library.register_fake("fusedrnn::layer_backward", _layer_backward)

"""What a layer's results look like without computing them, for torch.compile and its like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from .operands import Cotangents, Kept, Operands, on_backward, on_layer


@on_layer
def _layer(o: Operands, kept: Kept) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _C.check_fit(o)
    x, (w, *others) = o.input, o.named
    D, H, P = 1 + len(others), w.w_hh.size(0) // o.cell.gates, w.w_hh.size(1)
    N: Any  # an int, or a symbol under dynamic shapes
    B: Any
    every = max(kept.every, 1)
    if o.batch_sizes is None:
        N, B = x.size(0) // every * x.size(1), x.size(1)
    elif o.hx is not None:
        N, B = x.size(0) // every, o.hx.size(1)
    else:  # the first batch size, which only the data can tell
        N, B = x.size(0) // every, torch.library.get_ctx().new_dynamic_size()
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


torch.library.register_fake("fusedrnn::layer", _layer)
torch.library.register_fake("fusedrnn::layer_backward", _layer_backward)

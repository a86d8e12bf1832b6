"""The operators ``layer_reference`` and ``layer_backward_reference``: the definition in plain
torch, for what the kernels cannot do (forward-mode AD, complex numbers)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C, reference
from .operands import Cotangents, Operands, on_backward, on_layer


@on_layer
def _layer(o: Operands) -> tuple[Tensor, Tensor, Tensor]:
    _C.check_fit(*o)
    return reference.layer(*o)


@on_backward
def _layer_backward(o: Operands, c: Cotangents) -> list[Tensor]:
    _C.check_fit(*o, c.fit())
    if o.input.is_complex():
        raise RuntimeError(f"fusedrnn: layer_backward takes real numbers, got {o.input.dtype}")
    found = reference.layer_backward(c.grad_output, c.grad_h_n, c.grad_c_n, *o)
    return [g for g, need in zip(found, c.needs, strict=True) if need and g is not None]


for _name, _function in (
    ("layer_reference", _layer),
    ("layer_backward_reference", _layer_backward),
):
    torch.library.impl(f"fusedrnn::{_name}", "CompositeImplicitAutograd")(_function)

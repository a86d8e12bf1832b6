"""The operators ``layer_reference`` and ``layer_backward_reference``: the definition in plain
torch, for what the kernels cannot do (forward-mode AD, complex numbers)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C, reference
from .operands import Cotangents, Operands, on_backward, on_reference


def gradients(slopes: tuple[Any, Any, Any, Any], o: Operands) -> list[Tensor | None]:
    """The definition's, of a layer's operands, from those of output, h_n, c_n and states."""
    arguments: tuple[Any, ...] = (*slopes[:3], *o[:7], slopes[3], *o[7:])
    return reference.layer_backward(*arguments)


@on_reference
def _layer(o: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _C.check_fit(o)
    return reference.layer(*o)


@on_backward
def _layer_backward(o: Operands, c: Cotangents) -> list[Tensor]:
    _C.check_fit(o, backward=c.fit())
    if o.input.is_complex():
        raise RuntimeError(f"fusedrnn: layer_backward takes real numbers, got {o.input.dtype}")
    found = gradients((c.grad_output, c.grad_h_n, c.grad_c_n, c.grad_states), o)
    # The last two may not be asked about: reset_h and reset_c.
    return [g for g, need in zip(found, c.needs, strict=False) if need and g is not None]


for _name, _function in (
    ("layer_reference", _layer),
    ("layer_backward_reference", _layer_backward),
):
    torch.library.impl(f"fusedrnn::{_name}", "CompositeImplicitAutograd")(_function)

"""Loads the extension and tells torch what its operators do without running them.

Importing this registers torch.ops.fusedrnn: ``layer`` (one layer, D directions),
``layer_backward``, ``stack`` (all layers, dropout between them) and ``cell`` (one step). Here
stand their fake kernels, which only know shapes, and ``layer_reference`` and
``layer_backward_reference``: the definition in plain torch, for what the kernels cannot do
(forward-mode AD, complex numbers). Vmap and second derivatives: ``transforms``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C, _binary, experience, reference
from . import transforms as transforms  # registers the rules of vmap

cpu_isa = _C.cpu_isa
cpu_isas = _C.cpu_isas
Restriction = _C.Restriction
cuda_choice = _C.cuda_choice
cuda_device = _C.cuda_device
cuda_plan = _C.cuda_plan
cuda_restriction = _C.cuda_restriction
explain = _C.explain
fma_peak = _C.fma_peak
reserve_width = _C.reserve_width
rnn_takes_tf32 = _C.rnn_takes_tf32


def _warn_of_missing_cuda() -> None:
    warnings.warn(f"{_binary.cuda_missing()}. Until then torch.nn runs on the GPU", stacklevel=2)


_C.set_experience_loader(experience.load)
if not _binary.build_info()["cuda"]:
    _C.set_cuda_missing(_binary.cuda_missing(), _warn_of_missing_cuda)


@torch.library.register_fake("fusedrnn::layer")  # type: ignore[untyped-decorator]
def _(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _C.check_fit(input, batch_sizes, hx, cx, weights, mode, has_biases)
    D = reference._directions(weights, has_biases)
    gates = {"LSTM": 4, "GRU": 3}.get(mode, 1)
    H, P = weights[1].size(0) // gates, weights[1].size(1)
    N: Any  # an int, or a symbol under dynamic shapes
    B: Any
    if batch_sizes is None:
        N, B = input.size(0) * input.size(1), input.size(1)
    elif hx is not None:
        N, B = input.size(0), hx.size(1)
    else:  # the first batch size, which only the data can tell
        N, B = input.size(0), torch.library.get_ctx().new_dynamic_size()
    dtype = str(input.dtype).removeprefix("torch.")
    width = 0
    if train:
        projected = P if len(weights) // D % 2 else 0
        width = _C.reserve_width(mode, dtype, H, projected, input.device.type)
    return (
        input.new_empty((*input.shape[:-1], D * P)),
        input.new_empty((D, B, P)),
        input.new_empty((D, B, H) if mode == "LSTM" else (0,)),
        input.new_empty((D, N, width) if train else (0,)),
    )


@torch.library.register_fake("fusedrnn::layer_backward")  # type: ignore[untyped-decorator]
def _(
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
) -> list[Tensor]:
    backward = (grad_output, grad_h_n, grad_c_n, output, needs)
    _C.check_fit(input, batch_sizes, hx, cx, weights, mode, has_biases, backward)
    inputs = (input, hx, cx, *weights)
    return [
        x.new_empty(x.shape)
        for x, need in zip(inputs, needs, strict=True)
        if need and x is not None
    ]


@torch.library.impl("fusedrnn::layer_backward_reference", "CompositeImplicitAutograd")
def _(
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
) -> list[Tensor]:
    backward = (grad_output, grad_h_n, grad_c_n, output, needs)
    _C.check_fit(input, batch_sizes, hx, cx, weights, mode, has_biases, backward)
    if input.is_complex():
        raise RuntimeError(f"fusedrnn: layer_backward takes real numbers, got {input.dtype}")
    found = reference.layer_backward(
        grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, mode, has_biases
    )
    return [g for g, need in zip(found, needs, strict=True) if need and g is not None]


@torch.library.impl("fusedrnn::layer_reference", "CompositeImplicitAutograd")
def _(
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    mode: str,
    has_biases: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _C.check_fit(input, batch_sizes, hx, cx, weights, mode, has_biases)
    return reference.layer(input, batch_sizes, hx, cx, weights, mode, has_biases)

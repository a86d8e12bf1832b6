"""The gradients of layer_backward's results: those of the definition's backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C
from .definition import gradients
from .operands import Operands


def _second_backward(
    slopes: Sequence[Tensor | None],
    tensors: Sequence[Any],
    rows: Sequence[Tensor | None],
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
        dy, dh_n, dc_n, x, h, c, *weights, dstates, reset_h, reset_c = all_
        batch_sizes, lengths, resets = rows
        operands = Operands(
            x, batch_sizes, h, c, weights, mode, has_biases, lengths, resets, reset_h, reset_c
        )
        found = gradients((dy, dh_n, dc_n, dstates), operands)
        asked = [g for g, need in zip(found, needs, strict=False) if need]
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

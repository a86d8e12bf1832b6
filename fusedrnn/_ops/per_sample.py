"""The stack on torch's ExpandedWeights, as ``call_for_per_sample_grads`` makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils._expanded_weights.expanded_weights_impl import implements_per_sample_grads

from .. import reference
from .cells import CELLS
from .course import Course
from .stack import Flags, stack


class _PerSample:
    """torch's own operators, which ExpandedWeights understand and take to pieces, step by step."""

    @staticmethod
    def apply(names: tuple[str, ...], func: Any, *arguments: Any) -> tuple[Tensor, ...]:
        input, batch_sizes, hx, cx, params, mode, *rest = arguments
        flags, course, cell = Flags(*rest[:5]), Course(*rest[5:]), CELLS[mode]
        B = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        rows = flags.num_layers * (2 if flags.bidirectional else 1)
        if hx is None:
            hx = input.new_zeros(rows, B, params[1].shape[1])
        if cell.has_c:
            cx = input.new_zeros(rows, B, params[1].shape[0] // cell.gates) if cx is None else cx
            # What wants no gradient may go to oneDNN's layer, which knows no ExpandedWeights.
            input = input if input.requires_grad else input.detach().requires_grad_()
        if not cell.has_torch or course.is_cut or course.states:
            by_definition: Any = reference.stack
            found = by_definition(input, batch_sizes, hx, cx, params, mode, *flags, *course)
            return tuple(found)
        states: Any = (hx, cx) if cell.has_c else hx
        form = (
            (input, states, params) if batch_sizes is None else (input, batch_sizes, states, params)
        )
        batch_first = (False,) if batch_sizes is None else ()
        output, *final = getattr(torch, mode.lower())(*form, *flags, *batch_first)
        return output, final[0], final[-1], input.new_empty(0)


implements_per_sample_grads(stack)(_PerSample)

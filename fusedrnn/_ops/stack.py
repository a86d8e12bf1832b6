"""The operator ``stack`` on what torch.nn's layers take: batch-first, unbatched and packed input.

It is turned into what the operator takes (time first, [T, B, I] or packed rows with their batch
sizes) and the results back. Layers, directions, dropout and every check of a shape live below the
one operator call, because time spent in Python here is paid on every call, however short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .cells import CELLS
from .refusals import check_dim, refuse_types

Sequences = TypeVar("Sequences", Tensor, PackedSequence, Tensor | PackedSequence)

# The overload itself, not the packet: resolving it again costs 1 us a call.
stack = torch.ops.fusedrnn.stack.default


class Flags(NamedTuple):
    """The operator's last arguments, in its order."""

    has_biases: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool


def run(
    mode: str,
    input: Sequences,
    states: tuple[Tensor | None, Tensor | None],
    params: Sequence[Tensor],
    flags: Flags,
    batch_first: bool,
) -> tuple[Sequences, Tensor, Tensor]:
    """Output, h_n and c_n of a stack of layers, laid out as the input is."""
    hx, cx = states
    try:
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, original = input
            if order is not None:
                hx = None if hx is None else hx.index_select(1, order)
                cx = None if cx is None else cx.index_select(1, order)
            output, h_n, c_n = stack(data, batch_sizes, hx, cx, params, mode, *flags)
            if original is not None:
                h_n = h_n.index_select(1, original)
                c_n = c_n.index_select(1, original) if CELLS[mode].has_c else c_n
            return PackedSequence(output, batch_sizes, order, original), h_n, c_n

        dim = input.dim()
        if dim == 3:
            if not batch_first:
                return stack(input, None, hx, cx, params, mode, *flags)  # type: ignore[no-any-return]
            output, h_n, c_n = stack(input.transpose(0, 1), None, hx, cx, params, mode, *flags)
            return output.transpose(0, 1), h_n, c_n
        check_dim(mode, dim)
        hx = None if hx is None else hx.unsqueeze(1)
        cx = None if cx is None else cx.unsqueeze(1)
        output, h_n, c_n = stack(input.unsqueeze(1), None, hx, cx, params, mode, *flags)
        return output.squeeze(1), h_n.squeeze(1), c_n.squeeze(1) if CELLS[mode].has_c else c_n
    except RuntimeError as error:
        refuse_types(error, params)
        raise

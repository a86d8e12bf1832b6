"""The operator ``stack`` on what torch.nn's layers take: batch-first, unbatched and packed input.

It is turned into what the operator takes (time first, [T, B, I] or packed rows with their batch
sizes) and the results back. Layers, directions, dropout and every check of a shape live below the
one operator call, because time spent in Python here is paid on every call, however short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .cells import CELLS
from .course import PLAIN, Course, time_first, unbatched
from .refusals import check_dim, refuse_types

Sequences = TypeVar("Sequences", Tensor, PackedSequence, Tensor | PackedSequence)

# The overload itself, not the packet: resolving it again costs 1 us a call.
stack = torch.ops.fusedrnn.stack.default


class Flags(NamedTuple):
    """The operator's arguments between mode and a Course, in its order."""

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
    course: Course = PLAIN,
    operator: Callable[..., Any] | None = None,
) -> tuple[Sequences, Tensor, Tensor, Any]:
    """Output, h_n and c_n of a stack of layers, laid out as the input is, and the states of every
    step, if ``course`` asks for them. ``operator``: what takes the place of ``stack``."""
    if operator is None:
        operator = stack
    try:
        if type(input) is not Tensor:
            if isinstance(input, PackedSequence):
                return _packed(mode, input, states, params, flags, course, operator)
            if getattr(input, "is_nested", False) and input.layout == torch.jagged:
                return _jagged(mode, input, states, params, flags, course, operator)
        hx, cx = states
        dim = input.dim()
        if dim == 3:
            if not batch_first:
                result: Any = operator(input, None, hx, cx, params, mode, *flags, *course)
            else:
                course = time_first(course, input)
                found = operator(input.transpose(0, 1), None, hx, cx, params, mode, *flags, *course)
                output, h_n, c_n, kept = found
                kept = kept.transpose(-3, -2) if kept.dim() > 1 else kept
                result = output.transpose(0, 1), h_n, c_n, kept
        else:
            check_dim(mode, dim)
            hx = None if hx is None else hx.unsqueeze(1)
            cx = None if cx is None else cx.unsqueeze(1)
            course = unbatched(course)
            found = operator(input.unsqueeze(1), None, hx, cx, params, mode, *flags, *course)
            output, h_n, c_n, kept = found
            kept = kept.squeeze(-2) if kept.dim() > 1 else kept
            c_n = c_n.squeeze(1) if CELLS[mode].has_c else c_n
            result = output.squeeze(1), h_n.squeeze(1), c_n, kept
        return result  # type: ignore[no-any-return]
    except RuntimeError as error:
        refuse_types(error, params)
        raise


def _packed(
    mode: str,
    input: PackedSequence,
    states: tuple[Tensor | None, Tensor | None],
    params: Sequence[Tensor],
    flags: Flags,
    course: Course,
    stack: Callable[..., Any],
) -> tuple[PackedSequence, Tensor, Tensor, Any]:
    hx, cx = states
    data, batch_sizes, order, original = input
    if order is not None:
        hx = None if hx is None else hx.index_select(1, order)
        cx = None if cx is None else cx.index_select(1, order)
    output, h_n, c_n, kept = stack(data, batch_sizes, hx, cx, params, mode, *flags, *course)
    if original is not None:
        h_n = h_n.index_select(1, original)
        c_n = c_n.index_select(1, original) if CELLS[mode].has_c else c_n

    def packed(rows: Tensor) -> PackedSequence:
        return PackedSequence(rows, batch_sizes, order, original)

    return packed(output), h_n, c_n, _of_its_kind(kept, course, packed)


def _jagged(
    mode: str,
    input: Tensor,
    states: tuple[Tensor | None, Tensor | None],
    params: Sequence[Tensor],
    flags: Flags,
    course: Course,
    stack: Callable[..., Any],
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """A jagged NestedTensor [B, j, I], whatever ``batch_first`` says: padded by its own lengths."""
    if course.is_cut:
        name = "resets" if course.lengths is None else "lengths"
        raise RuntimeError(f"fusedrnn: {name} must be None with a NestedTensor: pass padded input")
    if input.dim() != 3 or input.lengths() is not None:  # type: ignore[attr-defined]
        raise RuntimeError(
            f"fusedrnn: a NestedTensor must be [B, j, I] without holes, got {input.dim()}-D"
        )
    rows, offsets = input.values(), input.offsets()  # type: ignore[attr-defined]
    lengths, N = offsets.diff(), rows.size(0)
    B, T = lengths.numel(), max(int(lengths.max()), 1)
    row = torch.arange(B, device=rows.device).repeat_interleave(lengths, output_size=N)
    step = torch.arange(N, device=rows.device) - offsets[row]
    where = step * B + row
    padded = rows.new_zeros(T * B, rows.size(1)).index_copy(0, where, rows).view(T, B, -1)
    own = course._replace(lengths=lengths)
    output, h_n, c_n, kept = stack(padded, None, *states, params, mode, *flags, *own)

    def jagged(padded: Tensor) -> Tensor:
        there = padded.flatten(0, 1).index_select(0, where)
        return torch.nested.nested_tensor_from_jagged(there, offsets)

    return jagged(output), h_n, c_n, _of_its_kind(kept, course, jagged)


def _of_its_kind(kept: Tensor, course: Course, kind: Callable[[Tensor], Any]) -> Any:
    """States of every step as the input is: of one layer, or a tuple of all layers'."""
    if kept.dim() == 1:
        return kept
    return kind(kept) if course.states == 1 else tuple(map(kind, kept.unbind()))


def with_states(course: Course, result: Sequence[Any], kept: Any) -> Any:
    """What ``forward`` returns: the result, and the states of every step if they were asked for.
    A cell without c has h for its state, which of the top layer is the output."""
    if not course.states:
        return result[0], result[1]
    of_top = isinstance(kept, Tensor) and kept.dim() == 1
    return result[0], result[1], result[0] if of_top else kept

"""Which way a call would go through torch's transforms, for explain()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import _C


@dataclass(frozen=True)
class Route:
    """Which way a call goes: by the kernels or, ``definition``, step by step in plain torch; how
    many samples of vmaps are folded into the batch; and why."""

    definition: bool
    folded: int
    training: bool
    reasons: tuple[str, ...]


@dataclass
class _Seen:
    """What a tensor carries, through all transforms: by level, samples and wanted gradients."""

    tangent: bool = False
    mapped: dict[int, int] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)


def _look_through(tensor: Tensor, seen: _Seen) -> None:
    functorch = torch._C._functorch
    while True:
        seen.tangent |= _C.has_tangent(tensor)
        wrapped = functorch.is_functorch_wrapped_tensor(tensor)
        level = functorch.maybe_get_level(tensor) if wrapped else 0
        if tensor.requires_grad:
            seen.wanted.add(level)
        if not wrapped:
            return
        inner = functorch.get_unwrapped(tensor)
        if functorch.is_batchedtensor(tensor):
            seen.mapped[level] = inner.size(functorch.maybe_get_bdim(tensor))
        tensor = inner


def route(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Route:
    """Which way a call with these inputs (data, states) and weights would go now."""
    own, shared = _Seen(), _Seen()
    for seen, tensors in ((own, inputs), (shared, weights)):
        for tensor in tensors:
            _look_through(tensor, seen)
    training = torch.is_grad_enabled() and bool(own.wanted | shared.wanted)
    why = []
    if own.tangent or shared.tangent:
        why.append("forward-mode AD: the kernels compute no tangents")
    if inputs[0].is_complex():
        why.append("complex numbers: the kernels compute real ones")
    if why:
        return Route(True, 1, training, tuple(why))
    folded = 1
    for level, V in sorted((own.mapped | shared.mapped).items()):
        if level in shared.mapped:
            why.append(f"vmap: {V} calls, because each sample has weights of its own")
            continue
        folded *= V
        why.append(f"vmap: {V} samples are rows of one batch")
        if training and any(inner > level for inner in shared.wanted):
            why.append(
                f"per-sample gradients: {V} calls, forward again and back, because each sample "
                "has weight gradients of its own"
            )
    return Route(False, folded, training, tuple(why))

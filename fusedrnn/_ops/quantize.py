"""Weights as int8: how they are rounded, and what they were."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127  # symmetric: -128 is not used
# Bits of a scale. With 7 of a weight they fill a float32, so that what int8 weights stand for is
# exact, and becomes the same int8 again.
BITS = 16


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as int8 with a scale for each row: row = scale * int8, to the nearest, so that the
    largest weight of a row is 127.

    Args:
        weight: [N, K], of any floating dtype.
    Returns:
        int8 [N, K] and float32 [N].
    """
    wide = weight.detach().double()
    mantissa, exponent = torch.frexp(wide.abs().amax(1) / LARGEST)
    scale = torch.ldexp(torch.ceil(mantissa * 2**BITS), exponent - BITS)
    steps = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
    return (wide / steps).round().to(torch.int8), scale.float()


def restored(weight: Tensor, scale: Tensor) -> Tensor:
    """What int8 weights stand for, in float32."""
    return weight.float() * scale.unsqueeze(1)

"""The one comparison by which every numerical test here decides.

A fixed tolerance is either too loose for a short sequence or too tight for a long one, so
torch.nn itself sets the measure: both results are compared with one computed in float64,
and ours may be at most twice as far from it as torch.nn's in the same dtype. The floor,
a few roundings of the largest value, keeps a lucky result of torch.nn's from failing ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Roundings of the largest exact value. In float64 nothing more precise decides.
FLOOR = {torch.float16: 1, torch.bfloat16: 1, torch.float32: 8, torch.float64: 16}
# A gradient of one element can be a sum that cancels, and nothing averages torch.nn's luck: over
# 5,500 results ours needs up to 94 roundings beyond twice torch.nn's error there, 10 from 16
# elements on.
ALONE = 15


def assert_as_accurate_as(
    ours: Tensor, theirs: Tensor, exact: Tensor, *, factor: float = 2, name: str = "result"
) -> None:
    """Assert that ours errs at most ``factor`` times as much as theirs, plus a floor.

    Args:
        ours, theirs: results in the dtype under test; shapes and dtypes must agree.
        exact: the same in float64, on any device.
        factor: allowed ratio of the largest errors.
        name: what is compared, for the message.
    """
    assert ours.shape == theirs.shape == exact.shape, (
        f"{name}: expected shape {list(theirs.shape)}, got {list(ours.shape)}"
    )
    assert ours.dtype == theirs.dtype, f"{name}: expected {theirs.dtype}, got {ours.dtype}"
    assert ours.device == theirs.device, f"{name}: expected {theirs.device}, got {ours.device}"
    if not exact.numel():
        return
    ours64, theirs64, exact = (t.detach().cpu().double() for t in (ours, theirs, exact))
    rounded = exact.to(ours.dtype).double()
    finite = rounded.isfinite()
    if not finite.all() or not ours64.isfinite().all():
        kept = (ours64 == rounded) | (ours64.isnan() & rounded.isnan())
        wrong = (ours64.isfinite() != finite) | (~finite & ~kept)
        assert not wrong.any(), _worst(f"{name}: inf/nan pattern", wrong, ours64, theirs64, rounded)
    zero = exact.new_zeros(())
    error = torch.where(finite, (ours64 - exact).abs(), zero)
    their_error = torch.where(finite & theirs64.isfinite(), (theirs64 - exact).abs(), zero).max()
    scale = torch.where(finite, exact.abs(), zero).max()
    few = 1 + ALONE / exact.numel()
    # Where torch.nn does the very operations of the reference its error is not zero but unknown,
    # and what we see of ours is both results' roundings: 24.7 of a gradient of an LSTM of three
    # layers, where against 80 bits ours erred by 12.0 and torch.nn and the reference by 12.7.
    roundings = FLOOR[ours.dtype] * (2 if ours.dtype == exact.dtype and their_error == 0 else 1)
    # A backward pass takes for 0 what is smaller than every normal number that it computes with.
    least = torch.finfo(torch.promote_types(ours.dtype, torch.float32)).tiny
    floor = roundings * few * (torch.finfo(ours.dtype).eps * scale + least)
    allowed = factor * their_error + floor
    assert error.max() <= allowed, _worst(
        f"{name}: error {error.max():.3g} exceeds {allowed:.3g} = {factor} x {their_error:.3g} "
        f"(torch.nn's) + {floor:.3g}",
        error,
        ours64,
        theirs64,
        exact,
    )


def _worst(message: str, error: Tensor, ours: Tensor, theirs: Tensor, exact: Tensor) -> str:
    at = tuple(int(i) for i in torch.unravel_index(error.double().argmax(), error.shape))
    return (
        f"{message}; worst at {at} of {list(error.shape)}: "
        f"expected {exact[at].item()!r}, got {ours[at].item()!r}, torch.nn {theirs[at].item()!r}"
    )

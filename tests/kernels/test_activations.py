"""The kernels' own tanh and sigmoid against float64, over every binary exponent of float32.

The bounds are those stated in csrc/cells/math.h; the Jacobian of a saturated gate and the error of
a whole layer rest on them.
"""

import math

import pytest
import torch

from fusedrnn import _C

FUNCTIONS = {"tanh": (torch.tanh, 2.3), "sigmoid": (torch.sigmoid, 2.3)}
LEAST_NORMAL = torch.finfo(torch.float32).tiny


def every_97th_float() -> torch.Tensor:
    infinity = 0x7F800000
    positive = torch.arange(0, infinity, 97, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return torch.cat((positive, -positive))


def ulp(exact: torch.Tensor) -> torch.Tensor:
    """Distance of neighbouring float32 numbers at each element of a float64 tensor."""
    near = exact.abs().float()
    return (torch.nextafter(near, torch.full_like(near, math.inf)) - near).double()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_stays_within_the_stated_ulp(name: str) -> None:
    function, bound = FUNCTIONS[name]
    x = every_97th_float()
    exact = function(x.double())
    error = (_C.eval_activation(name == "tanh", x).double() - exact).abs()
    normal = exact.abs() >= LEAST_NORMAL
    worst = (error / ulp(exact))[normal].max().item()
    assert worst <= bound
    assert error[~normal].max().item() <= LEAST_NORMAL


def test_a_saturated_tanh_is_rounded_as_well_as_torchs() -> None:
    # All that backward has of such a unit is 1 - y * y, and y's error is in it many times over.
    x = torch.linspace(2, 9, 1_000_000)
    exact = torch.tanh(x.double())
    error = ((_C.eval_activation(True, x).double() - exact).abs() / ulp(exact)).max()
    assert error <= 0.65


@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinities_saturate_and_nan_passes(name: str) -> None:
    function, _ = FUNCTIONS[name]
    x = torch.tensor([math.inf, -math.inf, 1e30, -1e30, 0.0, -0.0, math.nan])
    y = _C.eval_activation(name == "tanh", x)
    torch.testing.assert_close(y, function(x), rtol=0, atol=1e-38, equal_nan=True)


def test_tanh_is_odd_and_exact_near_zero() -> None:
    x = torch.tensor([1e-45, 1e-40, 1e-30, 1e-10, 1e-4])
    y = _C.eval_activation(True, x)
    assert torch.equal(y, -_C.eval_activation(True, -x))
    assert torch.equal(y[:4], x[:4])

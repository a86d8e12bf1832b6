"""Layers of bfloat16 on the CPU. With products in float32 weights are read as they are stored, and
results are, bit for bit, those of a float32 module with the same values, rounded once at the end.
With products in bfloat16, where the machine has instructions for them, they are at most twice as
far from float64 as torch.nn's, going forward and back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from fusedrnn.plan import LayerPlan
from support.problems import MODES, Problem, check

pytestmark = pytest.mark.usefixtures("threads")


@dataclass(frozen=True)
class Shape:
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    L: int = 1
    D: int = 1
    P: int = 0
    bias: bool = True

    def __str__(self) -> str:
        return "-".join(f"{k}{v:d}" for k, v in vars(self).items())


# Going back with a cut of every kind, odd rows and sizes, several chunks, and few rows, which are
# multiplied in float32.
NARROW = (
    Problem(T=20, B=5, I=17, H=33, hx="grad"),
    Problem(T=20, B=5, I=20, H=40, L=2, bidirectional=True, form="unsorted"),
    Problem(T=30, B=16, I=3, H=64, lengths="some", resets="sparse", reset_state="rows", every=3),
    Problem(T=3, B=100, I=33, H=70, bias=False),
    Problem(T=100, B=1, I=16, H=128),
    Problem(T=5, B=2, I=4, H=6),
)

SHAPES = (
    Shape(1, 1, 128, 128),  # one step: read where they lie
    Shape(1, 3, 5, 7, bias=False),
    Shape(7, 1, 40, 128),  # few rows: W_hh is packed in pairs
    Shape(7, 4, 20, 33, L=2, D=2),
    Shape(20, 3, 9, 16, D=2, bias=False),
    Shape(9, 2, 30, 64, P=17),
    Shape(7, 5, 20, 33, L=2, D=2),  # more: everything is widened
    Shape(300, 6, 3, 100),
    Shape(9, 40, 30, 64, P=17, D=2),
    Shape(3, 2, 20, 300),  # few steps of a wide layer
    Shape(9, 2, 17, 530),
    Shape(9, 70, 17, 530),
    Shape(20, 1, 17, 1030),  # k in several blocks
)


def twins(name: str, *sizes: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A module in bfloat16, and the same values in float32."""
    torch.manual_seed(0)
    low = getattr(fusedrnn, name)(*sizes, **options).bfloat16()
    wide = getattr(fusedrnn, name)(*sizes, **options)
    wide.load_state_dict({key: value.float() for key, value in low.state_dict().items()})
    return low, wide


def tensors(results: object) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [t for part in results for t in tensors(part)] if isinstance(results, tuple) else []


def assert_rounded(low: object, wide: object) -> None:
    for a, b in zip(tensors(low), tensors(wide), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


def widened(state: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...] | Tensor:
    return state.float() if isinstance(state, Tensor) else tuple(t.float() for t in state)


@pytest.fixture(params=(1, 2, 3))
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CPU_NARROW", "0")


# A relu near 0 may be on the other side of it in bfloat16, with another gradient; of few numbers
# such a one decides. tests/kernels/cpp/kernels_test.cpp holds relus to whole numbers.
@pytest.mark.parametrize("problem", NARROW, ids=str)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "RNN_RELU"])
def test_layers_are_as_near_float64_as_torchs(problem: Problem, mode: str) -> None:
    check(replace(problem, mode=mode, dtype=torch.bfloat16))


def test_projections_are_as_near_float64_as_torchs() -> None:
    check(Problem(T=12, B=9, I=20, H=50, P=17, dtype=torch.bfloat16, bidirectional=True))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_weights_of_autocast_are_rounded_and_their_gradients_are_not(name: str) -> None:
    low, wide = twins(name, 40, 70)
    x, slope = torch.randn(30, 6, 40).bfloat16(), torch.randn(30, 6, 70).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = wide(x)
    expected, _ = low(x)
    assert torch.equal(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, list(wide.parameters()), slope),
        torch.autograd.grad(expected, list(low.parameters()), slope),
        strict=True,
    ):
        assert torch.equal(a.bfloat16(), b)


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@torch.no_grad()
def test_layers_give_the_rounded_results_of_float32(name: str, shape: Shape) -> None:
    if shape.P and name != "LSTM":
        pytest.skip("only an LSTM projects")
    options: dict[str, Any] = {"num_layers": shape.L, "bidirectional": shape.D == 2}
    options |= {"bias": shape.bias, **({"proj_size": shape.P} if shape.P else {})}
    low, wide = twins(name, shape.I, shape.H, **options)
    x = torch.randn(shape.T, shape.B, shape.I).bfloat16()
    output, state = low(x)
    assert_rounded((output, state), wide(x.float()))
    assert_rounded(low(x, state), wide(x.float(), widened(state)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_rounded(low(x, widened(state)), wide(x, widened(state)))
    lengths = torch.linspace(shape.T, 1, shape.B).round().long()
    (a, low_state), (b, wide_state) = (
        module(pack_padded_sequence(values, lengths))
        for module, values in ((low, x), (wide, x.float()))
    )
    assert_rounded((a.data, low_state), (b.data, wide_state))


@pytest.mark.usefixtures("_wide")
@pytest.mark.parametrize("B", [1, 3, 40])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@torch.no_grad()
def test_cells_give_the_rounded_results_of_float32(name: str, B: int) -> None:
    low, wide = twins(f"{name}Cell", 33, 70)
    x, h = torch.randn(B, 33).bfloat16(), torch.randn(B, 70).bfloat16()
    state = (h, 2 * h) if name == "LSTM" else h
    assert_rounded(low(x, state), wide(x.float(), widened(state)))
    assert_rounded(low(x), wide(x.float()))


@pytest.mark.usefixtures("_wide")
@torch.no_grad()
def test_rounding_is_to_nearest_even_and_keeps_what_is_not_finite() -> None:
    low, wide = twins("RNN", 1, 1, nonlinearity="relu", bias=False)
    for module in (low, wide):
        for weight in module.parameters():
            weight.fill_(1)
    x = torch.tensor([1.0, 2**-8, 2**-7, 2**-8, 3e38, 3e38, float("nan"), 1.0]).bfloat16()
    sums, _ = low(x.view(-1, 1, 1))
    exact, _ = wide(x.float().view(-1, 1, 1))
    torch.testing.assert_close(sums, exact.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert sums.flatten()[5].isinf()
    assert sums.flatten()[6].isnan()


def test_gradients_are_as_before() -> None:
    low, wide = twins("GRU", 5, 17)
    x = torch.randn(6, 3, 5).bfloat16()
    for module, values in ((low, x), (wide, x.float())):
        output, _ = module(values)
        output.float().square().sum().backward()
    for a, b in zip(low.parameters(), wide.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad.bfloat16(), rtol=0.05, atol=0.05)


@pytest.mark.usefixtures("_wide")
def test_the_plan_says_how_weights_are_kept() -> None:
    low, wide = twins("LSTM", 40, 128)
    with torch.no_grad():
        for module, rows, kept in (
            (low, 4, "packed, W_hh in bfloat16"),
            (low, 5, "packed"),
            (wide, 4, "packed"),
        ):
            dtype = next(module.parameters()).dtype
            plan = fusedrnn.explain(module, torch.randn(20, rows, 40, dtype=dtype)).layers[0]
            assert isinstance(plan, LayerPlan)
            assert plan.weights == kept
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert "W_hh in bfloat16" not in str(fusedrnn.explain(wide, torch.randn(20, 1, 40)))


def test_the_plan_says_what_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    low, wide = twins("GRU", 40, 64)
    x = torch.randn(20, 8, 40)

    def told(module: nn.Module, x: Tensor) -> str:
        return str(fusedrnn.explain(module, x))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        plans = [told(low, x.bfloat16()), told(wide, x)]
    assert all("products of bfloat16" in plan for plan in plans)
    assert "bfloat16" not in told(wide, x)
    monkeypatch.setenv("FUSEDRNN_CPU_NARROW", "0")
    assert "products of bfloat16" not in told(low, x.bfloat16())
    monkeypatch.setenv("FUSEDRNN_CPU_NARROW", "no")
    with pytest.raises(ValueError, match="FUSEDRNN_CPU_NARROW must be 0 or 1, got no"):
        low(x.bfloat16())

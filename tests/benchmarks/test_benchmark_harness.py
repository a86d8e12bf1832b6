"""What the benchmarks count as work, and that they refuse to time a wrong kernel."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import GRADIENTS, INFERENCE, Subject, gflop
from benchmarks.timing import agree


def test_gflop_of_the_reuters_stack_is_that_of_its_products() -> None:
    N, H = 100 * 64, 128
    forward = 2 * (2 * N * 4 * H * (H + H)) / 1e9
    assert gflop("LSTM", N, H, H, L=2) == pytest.approx(forward)
    assert gflop("LSTM", N, H, H, L=2, step=GRADIENTS) == pytest.approx(3 * forward)


def test_gflop_leaves_out_the_gradient_of_an_input_nobody_asks_for() -> None:
    whole = gflop("GRU", 1000, 28, 256, step=GRADIENTS)
    without = gflop("GRU", 1000, 28, 256, step=GRADIENTS, input_grad=False)
    assert whole - without == pytest.approx(2 * 1000 * 3 * 256 * 28 / 1e9)
    # An upper layer's input is the layer below, which always asks.
    two = gflop("GRU", 1000, 28, 256, L=2, step=GRADIENTS, input_grad=False)
    assert two - without == pytest.approx(3 * gflop("GRU", 1000, 256, 256))


def test_gflop_counts_both_directions_and_the_projection() -> None:
    one = gflop("RNN", 10, 3, 5, step=INFERENCE)
    assert gflop("RNN", 10, 3, 5, D=2) == pytest.approx(2 * one)
    projected = 2 * 10 * (4 * 5 * (3 + 2) + 2 * 5) / 1e9
    assert gflop("LSTM", 10, 3, 5, P=2) == pytest.approx(projected)


def test_a_subject_that_agrees_is_passed_with_its_error() -> None:
    x = torch.linspace(0, 1, 5)
    assert agree(Subject(lambda: (x + 1e-6,), lambda: (x,), "random")) < 1e-5


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_subject_that_is_wrong_is_not_timed(wrong: float) -> None:
    x = torch.linspace(0, 1, 5)
    with pytest.raises(AssertionError, match=r"differ from torch\.nn's"):
        agree(Subject(lambda: (wrong * x,), lambda: (x,), "random"))


def test_both_sides_draw_the_same_random_numbers() -> None:
    def draw() -> tuple[torch.Tensor, ...]:
        return (torch.rand(3),)

    assert agree(Subject(draw, draw, "random")) == 0

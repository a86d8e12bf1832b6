"""Bits that may not depend on circumstance: on the number of threads, the run, or, for outputs, the
rows that happen to share the batch."""

from collections.abc import Iterator

import pytest
import torch

import fusedrnn

SHAPES = [(50, 64, 28, 100), (20, 3, 128, 37), (30, 1, 40, 128), (7, 5, 300, 700)]  # T, B, I, H


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_outputs_and_gradients_have_the_same_bits_for_any_number_of_threads(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    T, B, width, H = shape
    module = getattr(fusedrnn, name)(width, H, 2, bidirectional=True)
    x = torch.randn(T, B, width, requires_grad=True)

    def run(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        y = module(x)[0]
        return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]

    first = run(1)
    for threads in (1, 2, 3):
        assert all(map(torch.equal, first, run(threads)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_row_does_not_depend_on_its_batch(name: str, shape: tuple[int, int, int, int]) -> None:
    T, B, width, H = shape
    module = getattr(fusedrnn, name)(width, H)
    x = torch.randn(T, B, width)
    with torch.no_grad():
        whole = module(x)[0]
        for b in range(0, B, 7):
            assert torch.equal(module(x[:, b : b + 1])[0][:, 0], whole[:, b])

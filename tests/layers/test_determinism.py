"""Bits that may not depend on circumstance: on the number of threads, the run, or, for outputs, the
rows that happen to share the batch."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fusedrnn

# T, B, I, H; the last one's long rows are gathered for the weight gradients.
SHAPES = [
    (50, 64, 28, 100),
    (20, 3, 128, 37),
    (30, 1, 40, 128),
    (7, 5, 300, 700),
    (40, 7, 520, 515),
]


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
    module = getattr(fusedrnn, name)(width, H, 2, bidirectional=True, dropout=0.3)
    x = torch.randn(T, B, width, requires_grad=True)

    def run(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        torch.manual_seed(11)
        y = module(x)[0]
        return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]

    first = run(1)
    for threads in (1, 2, 3, 4, 8):
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


# Of few steps of a wide layer weights are packed for many rows, and read as they lie for few.
@pytest.mark.parametrize("shape", [(3, 30, 40, 256), (12, 12, 40, 512)], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_of_few_steps_a_row_depends_only_on_whether_there_are_many(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    T, B, width, H = shape
    module = getattr(fusedrnn, name)(width, H)
    x = torch.randn(T, B, width)
    many, few = -(-80 // T), 79 // T
    with torch.no_grad():
        whole, some = module(x)[0], module(x[:, :few])[0]
        torch.testing.assert_close(whole[:, :few], some)
        for b in range(B - many):
            assert torch.equal(module(x[:, b : b + many])[0], whole[:, b : b + many])
        for b in range(few):
            assert torch.equal(module(x[:, b : b + 1])[0][:, 0], some[:, b])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_packed_rows_depend_on_neither_threads_nor_batch(name: str) -> None:
    module = getattr(fusedrnn, name)(40, 64, bidirectional=True)
    # Not of one step: alone, such a row is summed in the order for few steps, which T decides.
    rows = [torch.randn(t, 40) for t in (3, 30, 17, 2, 30, 8)]

    def run(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        output, state = module(pack_sequence(rows, enforce_sorted=False))
        y, _ = pad_packed_sequence(output)
        gradients = torch.autograd.grad(output.data.square().sum(), module.parameters())
        return [y, *(state if name == "LSTM" else [state]), *gradients]

    first = run(1)
    for threads in (1, 2, 3, 4, 8):
        assert all(map(torch.equal, first, run(threads)))
    with torch.no_grad():
        for b, row in enumerate(rows):
            assert torch.equal(module(row)[0], first[0][: len(row), b])


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_a_cells_row_does_not_depend_on_its_batch(name: str) -> None:
    cell = getattr(fusedrnn, name)(40, 100)
    x = torch.randn(33, 40)

    def step(x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = cell(x)[0] if name == "LSTMCell" else cell(x)
        return h

    with torch.no_grad():
        whole = step(x)
        for b in range(0, 33, 5):
            assert torch.equal(step(x[b : b + 1])[0], whole[b])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_sample_of_a_vmap_has_the_bits_of_its_own_call(name: str) -> None:
    module = getattr(fusedrnn, name)(40, 64, 2, bidirectional=True)
    x = torch.randn(5, 20, 3, 40)

    with torch.no_grad():
        mapped = torch.func.vmap(module)(x)[0]
        assert all(torch.equal(mapped[i], module(x[i])[0]) for i in range(5))

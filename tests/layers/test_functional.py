"""The functions by themselves: parameter lists in, every form of input, results as torch.nn's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from fusedrnn import functional
from support.oracle import close, packed


def flat(module: nn.RNNBase) -> list[torch.Tensor]:
    return [w for group in module.all_weights for w in group]


OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def test_lstm_takes_a_parameter_list() -> None:
    module = nn.LSTM(3, 5, proj_size=2, **OPTIONS)
    x, hx = torch.randn(6, 4, 3), (torch.randn(4, 4, 2), torch.randn(4, 4, 5))
    close(functional.lstm(x, hx, flat(module), **OPTIONS), module(x, hx))
    close(functional.lstm(x, list(hx), tuple(flat(module)), **OPTIONS), module(x, hx))
    close(functional.lstm(x, None, flat(module), **OPTIONS), module(x))


def test_gru_takes_a_parameter_list() -> None:
    module = nn.GRU(3, 5, bias=False, **OPTIONS)
    x, hx = torch.randn(6, 4, 3), torch.randn(4, 4, 5)
    close(functional.gru(x, hx, flat(module), has_biases=False, **OPTIONS), module(x, hx))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_takes_a_parameter_list(nonlinearity: str) -> None:
    module = nn.RNN(3, 5, nonlinearity=nonlinearity, **OPTIONS)
    x, hx = torch.randn(6, 4, 3), torch.randn(4, 4, 5)
    ours = functional.rnn(x, hx, flat(module), nonlinearity=nonlinearity, **OPTIONS)
    close(ours, module(x, hx))


def test_batch_first_and_unbatched_inputs_keep_their_layout() -> None:
    module = nn.LSTM(3, 5, batch_first=True)
    x = torch.randn(4, 6, 3)
    output, state = functional.lstm(x, None, flat(module), batch_first=True)
    theirs, _ = module(x)
    close((output, state), module(x))
    assert output.stride() == theirs.stride()
    hx = (torch.randn(1, 5), torch.randn(1, 5))
    for batch_first in (False, True):
        ours = functional.lstm(x[0], hx, flat(module), batch_first=batch_first)
        close(ours, module(x[0], hx))


def test_packed_results_keep_the_input_order() -> None:
    module = nn.GRU(3, 5, **OPTIONS)
    sequences = [torch.randn(n, 3) for n in (2, 5, 1, 4)]
    hx = torch.randn(4, 4, 5)
    rows = packed(sequences, enforce_sorted=False)
    output, h_n = functional.gru(rows, hx, flat(module), **OPTIONS)
    theirs, their_h_n = module(rows, hx)
    assert isinstance(output, PackedSequence)
    assert output.batch_sizes is rows.batch_sizes
    assert output.sorted_indices is rows.sorted_indices
    assert output.unsorted_indices is rows.unsorted_indices
    close((output.data, h_n), (theirs.data, their_h_n))


def test_sorted_packed_output_has_no_indices() -> None:
    rows = packed([torch.randn(n, 3) for n in (5, 2)])
    output, _ = functional.rnn(rows, None, flat(nn.RNN(3, 4)))
    assert output.sorted_indices is None
    assert output.unsorted_indices is None


def test_results_are_plain_tuples() -> None:
    x = torch.randn(6, 4, 3)
    result = functional.lstm(x, None, flat(nn.LSTM(3, 4)))
    assert type(result) is tuple
    assert type(result[1]) is tuple
    assert type(functional.gru(x, None, flat(nn.GRU(3, 4)))) is tuple


def test_unknown_nonlinearity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown nonlinearity 'x'\. Select"):
        functional.rnn(torch.randn(2, 2, 3), None, flat(nn.RNN(3, 4)), nonlinearity="x")


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2, 3)])
def test_input_that_is_not_2d_or_3d_is_refused(shape: tuple[int, ...]) -> None:
    x, n = torch.randn(shape), len(shape)
    with pytest.raises(ValueError, match=f"LSTM: Expected input to be 2D or 3D, got {n}D instead"):
        functional.lstm(x, None, flat(nn.LSTM(3, 4)))
    with pytest.raises(ValueError, match=f"RNN: .* got {n}D tensor instead"):
        functional.rnn(x, None, flat(nn.RNN(3, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (6, 4, 7)}, "input.size(-1) must be equal to input_size. Expected 3, got 7"),
        ({"h": (1, 2, 5)}, "hx must be [1, 4, 5] (D, B, P), got [1, 2, 5]"),
        ({"c": (1, 4, 6)}, "cx must be [1, 4, 5] (D, B, H), got [1, 4, 6]"),
        ({"x": (0, 4, 3)}, "Expected sequence length to be larger than 0 in RNN"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_the_operator(
    change: dict[str, tuple[int, ...]], message: str
) -> None:
    shapes = {"x": (6, 4, 3), "h": (1, 4, 5), "c": (1, 4, 5)} | change
    x, h, c = (torch.randn(shapes[k]) for k in "xhc")
    with pytest.raises(RuntimeError) as error:
        functional.lstm(x, (h, c), flat(nn.LSTM(3, 5)))
    assert message in str(error.value)


def test_parameters_that_do_not_fit_are_refused_with_the_shape_that_would() -> None:
    x, good = torch.randn(6, 4, 3), flat(nn.LSTM(3, 5))
    wrong = {
        0: torch.randn(20, 4),
        1: torch.randn(5, 20),
        2: torch.randn(19),
        3: torch.randn(20, dtype=torch.float64),
    }
    for i, weight in wrong.items():
        with pytest.raises(RuntimeError):
            functional.lstm(x, None, [*good[:i], weight, *good[i + 1 :]])
    for count in (0, 1, 3, 7):
        with pytest.raises(RuntimeError):
            functional.lstm(x, None, (good + good)[:count])
    with pytest.raises(RuntimeError):
        functional.lstm(x, None, good, num_layers=2)
    with pytest.raises(RuntimeError):
        functional.lstm(x, None, good, bidirectional=True)


def test_batch_sizes_that_do_not_fit_are_refused() -> None:
    weights = flat(nn.GRU(3, 5))
    data = torch.randn(6, 3)
    for sizes in ([3, 2], [2, 4], [3, 3, 0], [7], [], [-1, 7]):
        rows = PackedSequence(data, torch.tensor(sizes, dtype=torch.int64, device="cpu"))
        with pytest.raises(RuntimeError):
            functional.gru(rows, None, weights)

"""Streams: steps one by one give the bits of a whole call; rows join, leave and are reset; several
threads share one frozen layer."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fusedrnn
from support.oracle import tensors_of

DTYPES = (None, torch.bfloat16, torch.int8)
I, H = 9, 21  # noqa: E741


def frozen(name: str = "LSTM", dtype: Any = None, **flags: Any) -> Any:
    torch.manual_seed(0)
    return fusedrnn.freeze(getattr(fusedrnn, name)(I, H, **flags), dtype)


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "MGU"])
def test_steps_give_the_bits_of_a_call(name: str, dtype: Any, rows: int) -> None:
    made = frozen(name, dtype, num_layers=3)
    x = torch.randn(12, rows, I)
    output, end = made(x)
    stream = made.stream(rows)
    for t, one in enumerate(x[:5]):
        found = stream.step(one.numpy() if t % 2 else one)
        assert isinstance(found, np.ndarray)
        assert np.array_equal(found, output[t].numpy())
    assert torch.equal(stream.run(x[5:]), output[5:])
    for a, b in zip(tensors_of(stream.state), tensors_of(end), strict=True):
        assert torch.equal(a, b)


def test_projected_and_float64_layers_stream() -> None:
    cases: list[dict[str, Any]] = [{"proj_size": 5}, {"dtype": torch.float64}]
    for flags in cases:
        made = fusedrnn.freeze(fusedrnn.LSTM(I, H, **flags))
        x = torch.randn(4, 2, I, dtype=flags.get("dtype"))
        stream = made.stream(2)
        stepped = [stream.step(one).copy() for one in x]
        assert np.array_equal(np.stack(stepped), made(x)[0].numpy())


def test_rows_join_leave_and_are_reset() -> None:
    made = frozen("GRU", num_layers=2)
    x = torch.randn(9, 3, I)
    alone = [made(x[:, b : b + 1])[0][:, 0] for b in range(3)]

    def shown(output: Any, *rows: Tensor) -> None:
        assert np.array_equal(output, torch.stack(rows).numpy())

    stream = made.stream(2)
    assert stream.batch == 2
    shown(stream.step(x[0, :2]), alone[0][0], alone[1][0])
    stream.join()
    late = made(x[1:, 2:])[0][:, 0]
    shown(stream.step(x[1]), alone[0][1], alone[1][1], late[0])
    stream.leave(0)
    shown(stream.step(x[2, 1:].contiguous()), alone[1][2], late[1])
    stream.reset(0)
    anew = made(x[3:, 1:2])[0][:, 0]
    shown(stream.step(x[3, 1:].contiguous()), anew[0], late[2])
    stream.reset()
    shown(stream.step(x[0, :2]), alone[0][0], alone[1][0])
    stream.leave(1)
    stream.leave(0)
    assert stream.batch == 0
    assert stream.step(torch.zeros(0, I)).shape == (0, H)
    stream.join(3)
    shown(stream.step(x[0]), *(each[0] for each in alone))


def test_states_are_copied_out_and_set() -> None:
    made = frozen("LSTM", num_layers=2)
    x = torch.randn(6, 2, I)
    stream = made.stream(2)
    stream.run(x[:3])
    kept = stream.state
    expected = stream.run(x[3:])
    assert not torch.equal(stream.state[0], kept[0])
    other = made.stream(2)
    other.state = kept
    assert torch.equal(other.run(x[3:]), expected)


def test_the_output_belongs_to_the_stream() -> None:
    stream = frozen().stream(1)
    first = stream.step(torch.randn(1, I))
    before = first.copy()
    assert stream.step(torch.randn(1, I)) is first
    assert not np.array_equal(first, before)
    del stream
    gc.collect()
    assert np.isfinite(first).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.step(np.zeros((2, I))), RuntimeError, "contiguous Float"),
        (lambda s: s.step(torch.zeros(1, I)), RuntimeError, r"\[2, 9\].*got \[1, 9\]"),
        (lambda s: s.step(torch.zeros(2, 2 * I)[:, ::2]), RuntimeError, "contiguous"),
        (lambda s: s.step(np.zeros((I, 2), np.float32).T), TypeError, "contiguous"),
        (lambda s: s.step([[0.0] * I] * 2), TypeError, "got list"),
        (lambda s: s.step(torch.zeros(2, I).to(torch.bfloat16)), RuntimeError, "Float"),
        (lambda s: s.run(torch.zeros(2, I)), RuntimeError, "T, 2, 9"),
        (lambda s: s.reset(2), ValueError, "from 0 to 1, got 2"),
        (lambda s: s.reset(-1), ValueError, "got -1"),
        (lambda s: s.leave(2), ValueError, "got 2"),
        (lambda s: s.join(-1), ValueError, "got -1"),
        (lambda s: setattr(s, "state", torch.zeros(1, 2, H)), RuntimeError, "pass"),
        (lambda s: frozen(bidirectional=True).stream(), ValueError, "bidirectional"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], message: str) -> None:
    stream = frozen().stream(2)
    with pytest.raises(error, match=message):
        call(stream)
    assert stream.step(torch.zeros(2, I)).shape == (2, H)


def test_threads_share_a_layer_and_give_its_bits() -> None:
    made = frozen("LSTM", torch.int8, num_layers=2)
    xs = torch.randn(4, 200, 3, I)
    expected = [made(x)[0].numpy() for x in xs]
    found: list[Any] = [None] * 4

    def work(i: int) -> None:
        stream = made.stream(3)
        found[i] = np.stack([stream.step(one).copy() for one in xs[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(np.array_equal, found, expected))


def test_a_forked_child_shares_the_layer() -> None:
    made = frozen("GRU", num_layers=2)
    x = torch.randn(5, 1, I)
    expected = made(x)[0].numpy()
    child = os.fork()
    if child == 0:
        stream = made.stream(1)
        same = np.array_equal(np.stack([stream.step(one).copy() for one in x]), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0

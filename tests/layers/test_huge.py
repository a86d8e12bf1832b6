"""Sizes at which a 32-bit index would wrap: offsets as numbers, then as memory, and very long, very
wide and very narrow layers.

The runs of more than 2^31 elements take up to 14 GB and are for FUSEDRNN_HUGE=1, on a machine
with 24.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedrnn
from fusedrnn import _C
from support.commands import compiler
from support.oracle import pair, tensors_of
from support.paths import CSRC

NAMES = ("RNN", "LSTM", "GRU")
OVER = 2**31
SIZES = {"workspace_bytes", "reserve_bytes"}


def gradient(of: Tensor) -> Tensor:
    assert of.grad is not None
    return of.grad


# A sum of two int64 kept in an int shows here without a run; all variants share the code.
@pytest.mark.parametrize("source", ["plan", "isa/kernels_baseline", "isa/kernels_avx2"])
def test_no_index_is_narrowed_silently(source: str) -> None:
    path = CSRC / "cpu" / f"{source}.cpp"
    command = [*compiler(), "-std=c++20", "-fsyntax-only", "-O0", f"-I{CSRC}"]
    command += ["-Wconversion", "-Wno-sign-conversion", "-Wno-float-conversion", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    narrowed = re.findall(r"^.*warning: conversion from .*$", done.stderr, re.MULTILINE)
    assert not narrowed, "\n".join(narrowed)


def told(mode: str, dtype: str, T: int, B: int, H: int, **options: Any) -> dict[str, Any]:
    """The plan of a problem that need not fit anywhere."""
    problem = {"mode": mode, "dtype": dtype, "T": T, "B": B, "I": 8, "H": H, "P": 0, "D": 1}
    return _C.explain(problem | {"training": True} | options, None, 2)


@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [False, True])
def test_sizes_of_memory_grow_in_proportion_past_32_bits(
    mode: str, dtype: str, training: bool
) -> None:
    # More than 256 rows make one step a chunk: what one more row takes is the same from there on.
    few, more, most = (
        told(mode, dtype, 1000, B, 256, training=training) for B in (2**10, 2**11, 2**30)
    )
    for key in SIZES & few.keys():
        a_row = (more[key] - few[key]) // 2**10
        assert most[key] == few[key] + a_row * (2**30 - 2**10), key
        assert few[key] == 0 or most[key] > OVER, key


@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_thousand_steps_are_the_same_in_one_call_or_in_many(name: str) -> None:
    T, part = 200_000, 50_000
    module = getattr(fusedrnn, name)(2, 4)
    x = torch.randn(T, 1, 2, requires_grad=True)
    y, _ = module(x)
    y.square().mean().backward()
    whole, dx = [gradient(p) for p in module.parameters()], gradient(x)
    hx = None
    with torch.no_grad():
        for t in range(0, T, part):
            piece, hx = module(x[t : t + part], hx)
            assert torch.equal(piece, y[t : t + part])
    # What is far behind has no weight in a gradient: the last steps' are those of a short call.
    few = x[-300:].detach().requires_grad_()
    tail = module(few)[0][-100:].square().sum() / y.numel()
    (grad,) = torch.autograd.grad(tail, few)
    torch.testing.assert_close(dx[-100:], grad[-100:], rtol=1e-3, atol=1e-9)
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in whole)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_a_hundred_thousand_is_that_of_a_call_of_its_own(name: str) -> None:
    B = 100_000
    module = getattr(fusedrnn, name)(3, 5, bidirectional=True)
    x = torch.randn(4, B, 3, requires_grad=True)
    y, _ = module(x)
    y.square().sum().backward()
    few = torch.tensor([0, 1, 49_999, 50_000, B - 1])
    some = x[:, few].detach().requires_grad_()
    own = module(some)[0]
    own.square().sum().backward()
    assert torch.equal(own, y[:, few])
    torch.testing.assert_close(gradient(some), gradient(x)[:, few])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(3_000, 1, 1), (1, 30_000, 1), (3, 1, 70_000), (70, 400, 1)])
def test_one_hidden_unit_computes_what_torch_does(name: str, sizes: tuple[int, int, int]) -> None:
    T, B, features = sizes
    ours, theirs = pair(name, features, 1)
    theirs.double()
    x = torch.randn(T, B, features)
    found = []
    for module, input in ((ours, x), (theirs, x.double())):
        outputs = tensors_of(module(input))
        outputs[0].square().mean().backward()
        found.append([*outputs, *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


huge = pytest.mark.skipif("FUSEDRNN_HUGE" not in os.environ, reason="14 GB: FUSEDRNN_HUGE=1")


@huge
def test_training_with_more_gates_than_32_bits_count_gives_each_row_its_own() -> None:
    # Few units, many rows: 2^31 gates are kept for backward, and little is multiplied.
    T, H = 32, 16
    B = OVER // (4 * H * T) + 1000
    module = fusedrnn.LSTM(1, H)
    x = torch.randn(T, B, 1, requires_grad=True)
    _, (h_n, c_n) = module(x)
    few = torch.tensor([0, 1, B // 2, B - 2, B - 1])
    slope = torch.zeros_like(h_n)
    slope[:, few] = torch.randn(1, len(few), H)
    h_n.backward(slope)
    found = [gradient(p).clone() for p in module.parameters()]
    module.zero_grad()
    some = x[:, few].detach().requires_grad_()
    _, (own_h, own_c) = module(some)
    own_h.backward(slope[:, few])
    assert torch.equal(own_h, h_n[:, few])
    assert torch.equal(own_c, c_n[:, few])
    torch.testing.assert_close(gradient(some), gradient(x)[:, few])
    assert gradient(x).count_nonzero() <= T * len(few)
    torch.testing.assert_close([p.grad for p in module.parameters()], found)


@huge
def test_one_step_of_more_gates_than_32_bits_count_gives_each_row_its_own() -> None:
    H = 256
    B = OVER // (4 * H) + 1000
    module = fusedrnn.LSTM(1, H).requires_grad_(False)
    x = torch.randn(1, B, 1)
    y = module(x)[0]
    few = torch.tensor([0, 1, B // 2, B - 2, B - 1])
    assert torch.equal(module(x[:, few])[0], y[:, few])

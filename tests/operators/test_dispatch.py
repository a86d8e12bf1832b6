"""The number of operators a call dispatches does not depend on the number of time steps.

Every operator is counted where the profiler sees it, so also those that a kernel of ours
would call inside itself: a loop over time made of tensor operations cannot hide.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.profiler import ProfilerActivity, profile

import fusedrnn
from support.problems import MODES, Problem, build, each, inputs

VARIANTS: list[dict[str, Any]] = [
    {},
    {"L": 2, "bidirectional": True},
    {"form": "batch_first", "hx": "grad"},
    {"form": "sorted"},
    {"form": "unsorted", "hx": "grad", "bidirectional": True},
    {"form": "unbatched"},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float64},
    {"P": 2},
]


def operators(problem: Problem, *, backward: bool = True) -> Counter[str]:
    """How often each operator is dispatched by one forward (and backward)."""
    module = build(problem, fusedrnn)
    input, states, _ = inputs(problem, problem.dtype)
    if isinstance(input, PackedSequence):
        input = input._replace(data=input.data.detach().requires_grad_())
    hx: Any = (states if problem.mode == "LSTM" else states[0]) if states else None

    def step() -> None:
        with torch.set_grad_enabled(backward):
            output, _ = module(input, hx)
        if backward:
            data = output.data if isinstance(output, PackedSequence) else output
            data.backward(torch.ones_like(data))
            module.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    names = (event.name for event in profiler.events())
    return Counter(name for name in names if name.startswith(("aten::", "fusedrnn::")))


@pytest.mark.parametrize("problem", each(MODES, VARIANTS), ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_operator_count_does_not_grow_with_time(problem: Problem, backward: bool) -> None:
    short, long = (operators(replace(problem, T=T), backward=backward) for T in (5, 50))
    assert long == short
    assert any(name.startswith("fusedrnn::") for name in short)


@pytest.mark.parametrize("mode", MODES)
def test_one_layer_is_a_handful_of_operators(mode: str) -> None:
    # Measured: stack, layer, and 5 allocations. Each more is host time on every call.
    assert operators(Problem(mode), backward=False).total() <= 8


def test_the_count_sees_operators_inside_a_python_loop() -> None:
    def loop(T: int) -> int:
        h = torch.zeros(3)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(T):
                h = h.tanh()
        return sum(event.name == "aten::tanh" for event in profiler.events())

    assert (loop(5), loop(50)) == (5, 50)

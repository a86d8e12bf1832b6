"""What the tests that need a GPU share: a kernel forced, a module that it takes, a step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import _C
from support.oracle import tensors_of
from support.planning import only
from support.planning import problem as problem_to_plan

KERNELS = ("block", "cluster", "stepwise", "torch")
OWN = ("block", "cluster", "stepwise")
NAMES = ("RNN", "LSTM", "GRU")
OF_MODULE = {"RNN": "RNN_TANH", "LSTM": "LSTM", "GRU": "GRU"}

NEEDS_GPU = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("on_gpu"),
]

Force = Callable[[str], None]
Result = TypeVar("Result")


def can_run(allowed: _C.Restriction, mode: str, H: int) -> bool:
    """Whether the kernels allowed have a plan for this H, forward and back."""
    limits = _C.cuda_device(torch.cuda.current_device())
    try:
        for backward in (False, True):
            asked = problem_to_plan(mode, T=7, B=5, H=H, I=9)
            _C.cuda_plan(asked, limits, allowed, backward)
    except ValueError:
        return False
    return True


def module_for(name: str, kernel: str, **options: Any) -> Any:
    """A module of a size that this kernel takes."""
    H = {"block": 100, "cluster": 400}.get(kernel, 60)
    if kernel != "torch" and not can_run(only(kernel), OF_MODULE[name], H):
        pytest.skip(f"this GPU has no {kernel} kernel")
    return getattr(fusedrnn, name)(7, H, **options)


def step(module: Any, x: Any, *, backward: bool = True) -> tuple[Tensor, ...]:
    """Outputs and, with ``backward``, the gradients of x and all weights."""
    with torch.set_grad_enabled(backward):
        outputs = tensors_of(module(x))
    if not backward:
        return outputs
    leaves = [x.data if isinstance(x, PackedSequence) else x, *module.parameters()]
    slopes = [torch.ones_like(t) for t in outputs]
    return (*outputs, *torch.autograd.grad(outputs, leaves, slopes))


def captured(call: Callable[[], Result], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    stream = torch.cuda.Stream()  # as torch asks for: nothing is to be made in the graph
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        results = call()
    return graph, results

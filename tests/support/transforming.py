"""Helpers of the tests of transforms: modules as functions of their weights, vmap as the loop
that it stands for, and a count of the operators that ran."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from support.oracle import pair, tensors_of, without_cudnn

untyped: Any = torch.func  # vjp's results are typed as two or three
functionalize, linearize, vmap = untyped.functionalize, untyped.linearize, untyped.vmap
grad, vjp, jvp = untyped.grad, untyped.vjp, untyped.jvp
jacfwd, jacrev, hessian = untyped.jacfwd, untyped.jacrev, untyped.hessian

NAMES = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
    {"num_layers": 2, "bidirectional": True, "proj_size": 2},
]
CASES = [(n, o) for n in NAMES for o in OPTIONS if n == "LSTM" or "proj_size" not in o]
V, T, B, I, H = 3, 4, 2, 3, 5  # noqa: E741

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def only_warnings_of_ours() -> Iterator[None]:
    """In force in each module that imports it."""
    with warnings.catch_warnings():  # torch's forward-mode formulas are TorchScript
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        with without_cudnn():
            yield


class Calls(TorchDispatchMode):
    """Counts the operators that run, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.name()] += 1
        return func(*args, **(kwargs or {}))

    @property
    def fused(self) -> tuple[int, int]:
        """Calls of layer and of layer_backward."""
        return self.count["fusedrnn::layer"], self.count["fusedrnn::layer_backward"]

    @property
    def steps(self) -> int:
        """Activations computed one by one, as only the definition does."""
        return self.count["aten::tanh"]


def double_pair(name: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Ours and torch.nn's module in float64, where both must agree to rounding."""
    return pair(name, *(sizes or (I, H)), dtype=torch.float64, **options)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: p.detach() for k, p in module.named_parameters()}


def output_of(module: nn.Module) -> Callable[..., Tensor]:
    """A module as a function of its parameters and its arguments, all results as one vector."""

    def call(weights: Any, x: Any, hx: Any = None) -> Tensor:
        found = tensors_of(functional_call(module, weights, (x, hx)))
        return torch.cat([t.flatten() for t in found])

    return call


def loss_of(module: nn.Module) -> Callable[..., Tensor]:
    output = output_of(module)
    return lambda *arguments: output(*arguments).square().sum()


def loop(f: Callable[..., Any], *arguments: Any) -> Any:
    """What vmap(f) means where every argument is mapped over its first dimension."""
    leaves, spec = torch.utils._pytree.tree_flatten(arguments)
    results = [
        f(*torch.utils._pytree.tree_unflatten([t[i] for t in leaves], spec))
        for i in range(len(leaves[0]))
    ]
    flat = [torch.utils._pytree.tree_flatten(r) for r in results]
    columns = [torch.stack(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    return torch.utils._pytree.tree_unflatten(columns, flat[0][1])


def plain(module: Any, shape: tuple[int, ...]) -> Any:
    """States for a module of these options."""
    L, D = module.num_layers, 1 + module.bidirectional
    h = draw(*shape, L * D, B, module.proj_size or H)
    return (h, draw(*shape, L * D, B, H)) if module.mode == "LSTM" else h

"""Compares our module with torch.nn's after whatever torch does to modules.

In float64, so that a difference is not rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from support import oracle
from support.oracle import tensors_of

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
NAMES = (*LAYERS, *CELLS)


def pair(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Ours and torch.nn's with the same weights, in float64 unless a dtype is given."""
    return oracle.pair(name, *args, **{"dtype": torch.float64, **options})


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def recurrent_weight(name: str) -> str:
    return "weight_hh" if name in CELLS else "weight_hh_l0"


def input_of(module: Any) -> Tensor:
    """The same input for every module of these sizes, in the module's dtype."""
    shape = (2, 3) if isinstance(module, nn.RNNCellBase) else (4, 2, 3)
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=generator).to(next(module.parameters()).dtype)


def compare(ours: Any, theirs: Any) -> None:
    """Assert equal results, and equal gradients of all parameters."""
    found = []
    for module in (ours, theirs):
        module.zero_grad()
        outputs = tensors_of(module(input_of(module)))
        torch.stack([t.double().square().sum() for t in outputs]).sum().backward()
        gradients = {k: p.grad for k, p in module.named_parameters()}
        found.append((outputs, gradients))
    dtype = next(ours.parameters()).dtype
    epsilon = 100 * torch.finfo(dtype).eps if dtype.itemsize > 2 else 0.03
    torch.testing.assert_close(*found, rtol=epsilon, atol=epsilon)


def compare_after(name: str, change: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
    """Change ours and torch.nn's alike; compare them, also after one step of training."""
    ours, theirs = (change(m) for m in pair(name, 3, 5, *args, **kwargs))
    compare(ours, theirs)
    for module in (ours, theirs):
        torch.optim.SGD(module.parameters(), 0.1).step()
    compare(ours, theirs)
    return ours

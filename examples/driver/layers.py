"""Whose layers a model is made of: fusedrnn's or torch.nn's, by one name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from examples.driver.errors import WorkloadError

CELLS = ("rnn", "gru", "lstm")
IMPLEMENTATIONS = ("fusedrnn", "torch")
NAMES = {"scratch": "written out", "fusedrnn": "fusedrnn", "torch": "torch.nn"}  # on a page
State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c) of an LSTM; each [1, B, H]
Layer = Callable[..., nn.RNNBase]  # called as the constructors of torch.nn's layers


def layer_class(cell: str, impl: str) -> Layer:
    """The RNN, GRU or LSTM class of ``fusedrnn`` or of ``torch.nn``."""
    layer: Layer = getattr(torch.nn if impl == "torch" else fusedrnn(), cell.upper())
    return layer


def fusedrnn() -> Any:
    """The package, imported when its layers are asked for."""
    try:
        return importlib.import_module("fusedrnn")
    except ImportError as error:
        raise WorkloadError(
            f"fusedrnn cannot be imported ({error}): pip install . or use --impl torch"
        ) from error


def count_parameters(model: nn.Module) -> int:
    """The number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

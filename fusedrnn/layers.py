"""Lists the recurrent layers of a model, whose they are, and how to change that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import cells, modules
from .tools import Tools, is_own

# Those that torch.nn has, too.
NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
OURS: dict[str, type[nn.Module]] = {
    name: getattr(cells if name.endswith("Cell") else modules, name) for name in NAMES
}
TORCHS: dict[str, type[nn.Module]] = {name: getattr(nn.modules.rnn, name) for name in NAMES}


@dataclass(frozen=True)
class Layer:
    """A recurrent layer or cell of a model.

    Attributes:
        name: as in ``model.named_modules()``; "" for the model itself.
        kind: the name of its class in fusedrnn or torch.nn: "LSTM", "GRUCell" and so on.
        ours: whether fusedrnn runs it.
        module: the layer.
        subclass: whether its class is derived from fusedrnn's or torch.nn's.
        scripted: whether TorchScript has compiled it.
    """

    name: str
    kind: str
    ours: bool
    module: nn.Module
    subclass: bool = False
    scripted: bool = False

    @property
    def label(self) -> str:
        return f"'{self.name}'" if self.name else "the model"

    @property
    def whose(self) -> Literal["fusedrnn", "torch.nn"]:
        return "fusedrnn" if self.ours else "torch.nn"

    @property
    def torch_has_it(self) -> bool:
        """Whether torch.nn has a class of this kind."""
        return self.kind in TORCHS

    def __str__(self) -> str:
        shown = f"{self.kind}({self.module.extra_repr()})"
        if self.scripted:
            shown = f"{self.kind}, compiled by TorchScript"
        elif self.subclass:
            shown = f"{type(self.module).__qualname__}, a subclass of {self.whose}.{self.kind}"
        else:
            shown = f"{self.whose}.{shown}"
        return f"{self.label}: {shown}{self._remedy}"

    @property
    def _remedy(self) -> str:
        if self.ours:
            return ""
        if self.scripted:
            return "; to change that: fusedrnn.convert(model) before torch.jit"
        if self.subclass:
            return f"; to change that: derive it from fusedrnn.{self.kind}"
        return "; to change that: fusedrnn.convert(model)"


@dataclass(frozen=True)
class Layers:
    """The recurrent layers and cells of a model, in the order of ``model.named_modules()``.

    Printed, it names the owner of each and, for torch.nn's layers, how to convert it.
    """

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        ours = sum(layer.ours for layer in self.layers)
        if not self.layers:
            return "no recurrent layers: no torch.nn.RNN, LSTM, GRU or cell, and none of fusedrnn's"
        total = len(self.layers)
        head = f"{total} recurrent layer{'s' if total > 1 else ''}, {ours} of fusedrnn"
        return "\n  ".join([head, *map(str, self.layers)])


def layers_of(model: nn.Module) -> Layers:
    """Every recurrent layer and cell of a model, which may itself be one."""
    found = (_layer(name, module) for name, module in model.named_modules())
    return Layers(tuple(layer for layer in found if layer is not None))


def _layer(name: str, module: nn.Module) -> Layer | None:
    if isinstance(module, torch.jit.ScriptModule):
        kind = getattr(module, "original_name", None)
        return Layer(name, kind, False, module, scripted=True) if kind in NAMES else None
    cls = parametrize.type_before_parametrizations(module)
    for base in cls.__mro__:  # ours come before torch.nn's, because they derive from them
        ours = _is_ours(base)
        if ours or base in TORCHS.values():
            return Layer(name, base.__name__, ours, module, subclass=base is not cls)
    return None


def _is_ours(cls: type) -> bool:
    """Whether a class is one of this package's layers or cells; a base of several is none."""
    public = not cls.__name__.startswith("_")
    return public and is_own(cls) and issubclass(cls, Tools) and issubclass(cls, nn.Module)

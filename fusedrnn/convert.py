"""Puts fusedrnn's modules in the place of torch.nn's in models that exist, and back; and under
torch.nn's names, for code that builds its own.

A live module is changed by assigning to its ``__class__``: both classes keep the same state, so
whatever refers to the module, its Parameters or its hooks stays valid, and there is nothing to
copy. Names are replaced in the modules of torch where they are looked up, not in torch's classes:
modules built before keep running torch's code.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import cells, modules

_NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_OURS: dict[str, type[nn.Module]] = {
    name: getattr(cells if name.endswith("Cell") else modules, name) for name in _NAMES
}
_TORCHS: dict[str, type[nn.Module]] = {name: getattr(nn.modules.rnn, name) for name in _NAMES}
_TO_OURS = {_TORCHS[name]: _OURS[name] for name in _NAMES}
_TO_TORCH = {_OURS[name]: _TORCHS[name] for name in _NAMES}


def convert(model: nn.Module) -> dict[str, nn.Module]:
    """Make every torch.nn RNN, LSTM, GRU and cell of a model fusedrnn's, in place.

    The modules stay the objects they are and only change their class. Parameters, buffers,
    hooks, tied weights, parametrizations, pruning, weight norm, ``requires_grad``, training mode,
    dtype, device and any attribute survive; an optimizer goes on. Call it before
    ``fully_shard``, and before TorchScript; before or after ``torch.compile``, DataParallel and
    DistributedDataParallel.

    Modules of a subclass of torch.nn's, which may override anything, are left alone, with a
    warning that names them: derive the subclass from fusedrnn's, or import it under
    :func:`patch`. A ``forward`` set on an instance, not in its class, stays in force.

    Args:
        model: any module, which may itself be one of them; changed in place.
    Returns:
        What was changed: each module under its first name in ``model.named_modules()``, ``""``
        being the model itself. Empty when there is nothing, as in a second call.
    Raises:
        TypeError: what is not a module, or recurrent layers compiled by TorchScript; then
            nothing has been changed.

    Example::

        optimizer = torch.optim.Adam(model.parameters())
        fusedrnn.convert(model)  # {'encoder.lstm': LSTM(128, 128, num_layers=2)}
        model(x).sum().backward()
        optimizer.step()
    """
    return _swap(model, _TO_OURS, "convert", "torch.nn", "fusedrnn")


def to_torch(model: nn.Module) -> dict[str, nn.Module]:
    """Make every fusedrnn RNN, LSTM, GRU and cell of a model torch.nn's, in place.

    Undoes :func:`convert`, and does the same to models that were built with fusedrnn: for
    what knows torch.nn's classes only (ONNX, TorchScript, ``quantize_dynamic``), and for models
    and exported programs that must load where fusedrnn is not installed. What survives is what
    survives :func:`convert`; on a GPU the weights are gathered for cuDNN, as they are when
    torch.nn builds a layer. The classes are torch's own, under :func:`patch` too.

    Args:
        model: any module, which may itself be one of them; changed in place.
    Returns:
        What was changed, as :func:`convert` returns it.
    Raises:
        TypeError: as :func:`convert`.

    Example::

        fusedrnn.to_torch(model)
        torch.onnx.export(model, (x,), "model.onnx")
        fusedrnn.convert(model)
    """
    changed = _swap(model, _TO_TORCH, "to_torch", "fusedrnn", "torch.nn")
    for module in changed.values():
        # A parametrization is left to the first call: computing it may have effects of its own.
        if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
            module._init_flat_weights()
    return changed


def _swap(
    model: nn.Module,
    classes: Mapping[type[nn.Module], type[nn.Module]],
    name: str,
    source: str,
    target: str,
) -> dict[str, nn.Module]:
    """Replace the classes of a model's modules; refuse before anything is changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"fusedrnn.{name}: expected a torch.nn.Module, got {type(model).__name__}; "
            "what has been exported cannot be changed, the module it was made from can"
        )
    chosen: dict[str, nn.Module] = {}
    left: list[str] = []
    for key, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if module is model or getattr(module, "original_name", None) in _NAMES:
                raise TypeError(
                    f"fusedrnn.{name}: {_where(key)} is a TorchScript module, whose code is "
                    f"compiled: call fusedrnn.{name} on the module before torch.jit"
                )
        elif parametrize.type_before_parametrizations(module) in classes:
            chosen[key] = module
        elif isinstance(module, tuple(classes)) and not isinstance(module, tuple(classes.values())):
            left.append(f"{_where(key)} ({type(module).__qualname__})")
    for module in chosen.values():
        _set_class(module, classes[parametrize.type_before_parametrizations(module)])
    if left:
        warnings.warn(
            f"fusedrnn.{name} left alone what is of a subclass of {source}'s: {', '.join(left)}; "
            f"derive the subclass from {target}'s instead",
            stacklevel=3,
        )
    return chosen


def _where(key: str) -> str:
    return f"'{key}'" if key else "the model"


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    if parametrize.is_parametrized(module):
        # torch made this module a class of its own, which holds a property per parametrized
        # weight: the same is made again over the other class.
        own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), own)
    module.__class__ = cls


_PATCHED: tuple[ModuleType, ...] = (nn, nn.modules, nn.modules.rnn)
_lock = threading.Lock()
_in_force = 0
_replaced: list[tuple[Any, str, Any]] = []


class Patch:
    """torch.nn's names replaced by fusedrnn's; what :func:`patch` returns.

    As a context manager it undoes the patch at the end of the block, whatever happens in it.
    """

    def __init__(self) -> None:
        self._applied = False

    def __enter__(self) -> Patch:
        self._apply()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _apply(self) -> None:
        global _in_force
        # TorchDynamo, 1.3 s to import and only then configurable, breaks the graph at whatever
        # torch.nn.LSTM and its sisters are at that moment, unless it is told to trace them.
        import torch._dynamo.config as dynamo

        with _lock:
            if self._applied:
                return
            self._applied = True
            _in_force += 1
            if _in_force > 1:
                return
            for place in _PATCHED:
                for name in _NAMES:
                    _replace(place, name, _OURS[name])
            # The setting itself is each thread's own, and torch.export puts it back to what it
            # found: so it is forced, for all threads, and this one's is noted to be restored.
            _replaced.append((dynamo, "allow_rnn", dynamo.allow_rnn))
            entry: Any = getattr(dynamo, "_config", {}).get("allow_rnn")
            if hasattr(entry, "env_value_force"):
                _replace(entry, "env_value_force", True)
            else:
                dynamo.allow_rnn = True

    def undo(self) -> None:
        """Put back what was there; while other patches are in force, only this one ends.

        A name that has been replaced again in the meantime is left as it is.
        """
        global _in_force
        with _lock:
            if not self._applied:
                return
            self._applied = False
            _in_force -= 1
            if _in_force:
                return
            while _replaced:
                place, name, before = _replaced.pop()
                if getattr(place, name) is _OURS.get(name, True):
                    setattr(place, name, before)


def _replace(place: Any, name: str, value: object) -> None:
    _replaced.append((place, name, getattr(place, name)))
    setattr(place, name, value)


def patch() -> Patch:
    """Put fusedrnn's RNN, LSTM, GRU and cells under torch.nn's names, until undone.

    For code that builds ``torch.nn.LSTM`` itself. While a patch is in force, ``torch.nn``,
    ``torch.nn.modules`` and ``torch.nn.modules.rnn`` give fusedrnn's classes: to calls, to
    ``from torch.nn import LSTM``, to ``isinstance``, to class statements, and to
    ``torch.load(..., weights_only=False)`` of models pickled with torch.nn's. What is built
    meanwhile stays fusedrnn's; :func:`to_torch` changes it back.

    What it cannot reach: names that were imported before (``from torch.nn import LSTM``), and
    subclasses and modules that exist already, which are then no instances of ``torch.nn.LSTM``
    and cannot be pickled under the patch. So patch before importing the code it is for, or
    use :func:`convert` on the model.

    Patches nest: the names go back when the last is undone, in whatever order. They hold for
    the whole process and all its threads, also those that did not ask; a block that must not
    affect others runs before they start. Processes started by spawn need their own.

    Returns:
        A :class:`Patch`, already in force: a context manager, with a method ``undo()``.

    Example::

        fusedrnn.patch()  # for the rest of the process

        with fusedrnn.patch():  # or for a block
            model = library.Model()  # its layers are fusedrnn's, also after the block
    """
    patched = Patch()
    patched._apply()
    return patched

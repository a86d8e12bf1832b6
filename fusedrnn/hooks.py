"""Makes other packages know our layers: torch.compile, torch.onnx and opacus.

torch._dynamo takes 1.3 s to import, torch.onnx 0.1 s, and most programs need neither. So each hook
waits until its package is imported: a finder on sys.meta_path waits for the name.

torch.compile breaks the graph at every instance of torch.nn.LSTM, GRU and RNN, because torch.nn's
layers end in an operator that it does not trace well. Ours end in one that it does. Dynamo's
setting ``allow_rnn`` lets all instances pass, ours and torch's. So we set it only while Dynamo
looks at one of ours. If a version of torch lacks that class or method, our layers break the graph
as torch.nn's do.

opacus looks up ``type(module)`` in tables of validators and fixers. We enter our classes there
beside torch.nn's.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .modules import GRU, LSTM, RNN


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds one module as the other finders do, and calls ``then`` with it after it has run."""

    def __init__(self, name: str, then: Callable[[ModuleType], object]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # the caller may only ask for the spec, without importing
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.then(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def when_imported(name: str, then: Callable[[ModuleType], object]) -> None:
    """Call ``then(module)`` now if the module has been imported, else when it is."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _WhenImported(name, then))


def _allow_ours(builder: ModuleType) -> None:
    """Make Dynamo's ``VariableBuilder.wrap_module`` treat our layers like any other module."""
    cls = getattr(builder, "VariableBuilder", None)
    theirs, config = getattr(cls, "wrap_module", None), getattr(builder, "config", None)
    if theirs is None or config is None:
        return

    @functools.wraps(theirs)
    def wrap_module(self: Any, value: Any) -> Any:
        if not isinstance(value, RNN | LSTM | GRU):
            return theirs(self, value)
        with config.patch(allow_rnn=True):
            return theirs(self, value)

    cls.wrap_module = wrap_module  # type: ignore[union-attr]


def _translate(_: ModuleType) -> None:
    """Register our operators' translations with torch.onnx.export."""
    from . import onnx_export as onnx_export


def _enter_tables(validators: ModuleType) -> None:
    """Make opacus' validators and fixers treat our layers as torch.nn's."""
    validator = getattr(validators, "ModuleValidator", None)
    for name in ("VALIDATORS", "FIXERS"):
        table = getattr(validator, name, {})
        for ours in (RNN, LSTM, GRU):
            theirs = next((base for base in ours.__mro__[1:] if base in table), None)
            if theirs is not None:
                table[ours] = table[theirs]


when_imported("torch._dynamo.variables.builder", _allow_ours)
when_imported("torch.onnx", _translate)
when_imported("opacus.validators", _enter_tables)

"""torch.compile traces our layers, although they are instances of torch.nn.LSTM, GRU and RNN.

TorchDynamo breaks the graph at every instance of those, because torch.nn's end in an operator that
it does not trace well. Ours end in one that it does. Its setting ``allow_rnn`` lets instances pass,
but all of them. So it is set while Dynamo looks at one of ours, and only then.

torch._dynamo takes 1.3 s to import, and most programs never compile. So its class is changed when
somebody imports it, by a finder on sys.meta_path that finds nothing else. Should a torch have no
such class or method, ours break the graph as torch.nn's do.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .modules import GRU, LSTM, RNN

BUILDER = "torch._dynamo.variables.builder"


def _allow_ours(builder: ModuleType) -> None:
    """Make ``VariableBuilder.wrap_module`` take our layers for modules like any other."""
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


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the builder once, as the others do, and has it changed after it has run."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != BUILDER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _allow_ours(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if BUILDER in sys.modules:
    _allow_ours(sys.modules[BUILDER])
else:
    sys.meta_path.insert(0, _WhenImported())

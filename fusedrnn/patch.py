"""Puts fusedrnn's classes under torch.nn's names, for code that builds its own layers.

It replaces the names in torch's modules and leaves torch's classes as they are, so layers that
were built before keep running torch's code.
"""

from __future__ import annotations

import sys
import threading
import warnings
from types import ModuleType, TracebackType
from typing import Any

from torch import nn

from .layers import NAMES, OURS, TORCHS

_PATCHED: tuple[ModuleType, ...] = (nn, nn.modules, nn.modules.rnn)
_lock = threading.Lock()
_in_force = 0
_replaced: list[tuple[Any, str, Any]] = []


class Patch:
    """What :func:`patch` returns: torch.nn's names, replaced by fusedrnn's until undone.

    As a context manager it undoes the patch at the end of the block, also after an exception.
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
        with _lock:
            if self._applied:
                return
            self._applied = True
            _in_force += 1
            if _in_force > 1:
                return
            for place in _PATCHED:
                for name in NAMES:
                    _replace(place, name, OURS[name])

    def undo(self) -> None:
        """End this patch; when the last patch in force ends, torch.nn has its own names back.

        A name that somebody else has replaced in the meantime is left as it is.
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
                if getattr(place, name) is OURS.get(name, True):
                    setattr(place, name, before)


def _replace(place: Any, name: str, value: object) -> None:
    _replaced.append((place, name, getattr(place, name)))
    setattr(place, name, value)


def patch() -> Patch:
    """Put fusedrnn's RNN, LSTM, GRU and cells under torch.nn's names, until undone.

    For code that builds ``torch.nn.LSTM`` itself. While a patch is in force, ``torch.nn``,
    ``torch.nn.modules`` and ``torch.nn.modules.rnn`` give fusedrnn's classes: to calls, to
    ``from torch.nn import LSTM``, to ``isinstance``, to class statements, and to
    ``torch.load(..., weights_only=False)`` of models pickled with torch.nn's. Layers built
    meanwhile stay fusedrnn's after the patch; :func:`to_torch` changes them back.

    A patch cannot reach names that were imported before (``from torch.nn import LSTM``), nor
    existing subclasses and layers: under the patch they are no instances of ``torch.nn.LSTM``
    and cannot be pickled. So patch before importing the code it is for, or use :func:`convert`
    on the model. A warning names the modules that imported the names before.

    Patches nest: the names go back when the last one is undone, in any order. A patch holds for
    the whole process and all its threads. If other threads must not see it, run the block
    before they start. Processes started by spawn need a patch of their own.

    Returns:
        A :class:`Patch`, already in force: a context manager, with a method ``undo()``.

    Example::

        fusedrnn.patch()  # for the rest of the process

        with fusedrnn.patch():  # or for a block
            model = library.Model()  # its layers are fusedrnn's, also after the block
    """
    patched = Patch()
    patched._apply()
    _warn_of_early_imports()
    return patched


def _warn_of_early_imports() -> None:
    """Warn of the modules that imported torch.nn's classes by name: no patch reaches those."""
    theirs = {id(cls): name for name, cls in TORCHS.items()}
    found = []
    for path, module in sorted(sys.modules.items()):
        if path.partition(".")[0] in ("torch", __package__) or not isinstance(module, ModuleType):
            continue
        held = sorted({theirs[id(value)] for value in vars(module).values() if id(value) in theirs})
        if held:
            found.append(f"{path} ({', '.join(held)})")
    if found:
        warnings.warn(
            "fusedrnn.patch came after these modules had imported torch.nn's classes by name, and "
            f"does not reach them: {'; '.join(found)}. Call patch before importing them, or "
            "fusedrnn.convert on the models that they build",
            stacklevel=3,
        )

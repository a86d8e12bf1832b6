"""Puts fusedrnn's classes under torch.nn's names, for code that builds its own layers.

Names are replaced in the modules of torch where they are looked up, not in torch's classes: layers
built before keep running torch's code.
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
    ``torch.load(..., weights_only=False)`` of models pickled with torch.nn's. What is built
    meanwhile stays fusedrnn's; :func:`to_torch` changes it back.

    What it cannot reach: names that were imported before (``from torch.nn import LSTM``), and
    subclasses and layers that exist already, which are then no instances of ``torch.nn.LSTM``
    and cannot be pickled under the patch. So patch before importing the code it is for, or
    use :func:`convert` on the model. A warning names the modules that imported before.

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
    _warn_of_early_imports()
    return patched


def _warn_of_early_imports() -> None:
    """Name the modules that hold torch.nn's classes by name, where no patch reaches them."""
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

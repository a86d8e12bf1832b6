"""``isinstance(ours, torch.nn.LSTM)`` is true, although our LSTM does not derive from torch.nn's.

Many libraries decide by it: how to initialize a layer, how to call it, what to check. Deriving
would be simpler, but torch.compile breaks the graph at every instance of ``torch.nn.LSTM``.

isinstance looks at ``type(module)`` first and at ``module.__class__`` second. So in eager code
``__class__`` tells another class, the look-alike, which derives from both ours and torch.nn's.
While torch.compile or torch.export traces, it tells the real class, and nothing is lost there.
``type(module)`` is the real class always.

A look-alike behaves as the class that it stands for: called, it makes an instance of that class;
an attribute set on it is set there; assigned to ``module.__class__``, it (or a class derived from
it, as parametrizations and FSDP make) gives the module a class without torch.nn's in it, which
torch.compile can trace.

Where a library looks up ``type(module)`` in a table instead, ours are entered in the table.
"""

from __future__ import annotations

import copyreg
import sys
from types import FunctionType
from typing import Any

from torch import nn
from torch._guards import TracingContext

# Both links are attributes of the classes, not entries of a table: parametrizations make a class
# for every module, and it goes with the module.
_ALIKE = "_fusedrnn_look_alike"  # of a real class
_REAL = "_fusedrnn_stands_for"  # of a look-alike, and of a class that was derived from one
_TORCHS: dict[type, type] = {}  # by class of ours
_own_class: Any = object.__dict__["__class__"]  # which LooksLike.__class__ hides


def set_class(module: object, cls: type) -> None:
    """``module.__class__ = cls``, as for any other object."""
    _own_class.__set__(module, cls)


def namespace(cls: type) -> dict[str, Any]:
    """What a class defines itself, to make another with the same."""
    automatic = ("__dict__", "__weakref__", _ALIKE, _REAL)
    return {name: value for name, value in vars(cls).items() if name not in automatic}


def look_like(torchs: type[nn.Module]) -> Any:
    """A decorator: instances of the class, and of its subclasses, pass for torch.nn's."""

    def decorate(real: type) -> type:
        _TORCHS[real] = torchs
        _make_look_alike(real, real, torchs)
        return real

    return decorate


def enter_tables() -> None:
    """Where opacus has been imported, let its validators and fixers treat ours as torch.nn's."""
    opacus = sys.modules.get("opacus.validators.module_validator")
    validator = getattr(opacus, "ModuleValidator", None)
    if validator is not None:
        for table in (validator.VALIDATORS, validator.FIXERS):
            table.update(
                {ours: table[theirs] for ours, theirs in _TORCHS.items() if theirs in table}
            )


class LooksLike:
    """The base of modules that pass for another class."""

    @property
    def __class__(self) -> type:
        real = type(self)
        if TracingContext.try_get() is not None:
            return real
        if _ALIKE not in vars(real):
            _make_look_alike_of_subclass(real)
        return vars(real)[_ALIKE] or real

    @__class__.setter
    def __class__(self, cls: type) -> None:
        set_class(self, _real(cls))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle stores __class__ in protocols 0 and 1, and compares it with the argument of
        # copyreg.__newobj__ in the others. copyreg._reconstructor does the same unwatched.
        made = nn.Module.__reduce_ex__(self, max(protocol, 2))
        if made[0] is not copyreg.__newobj__ or len(made[1]) != 1:  # type: ignore[attr-defined]
            return made
        return copyreg._reconstructor, (*made[1], object, None), *made[2:]  # type: ignore[attr-defined]


class _LookAlike(type):
    """The class of look-alikes."""

    @property
    def __bases__(cls) -> tuple[type, ...]:  # type: ignore[override]
        return vars(cls).get(_REAL, super()).__bases__  # type: ignore[no-any-return]

    def __dir__(cls) -> list[str]:
        return sorted({name for base in cls.__mro__ for name in vars(base)})

    def __call__(cls, *args: Any, **options: Any) -> Any:
        return vars(cls).get(_REAL, super().__call__)(*args, **options)

    def __setattr__(cls, name: str, value: Any) -> None:
        type.__setattr__(vars(cls).get(_REAL, cls), name, value)

    def __delattr__(cls, name: str) -> None:
        type.__delattr__(vars(cls).get(_REAL, cls), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        real = vars(cls).get(_REAL, cls)
        return issubclass(type(instance), real) or super().__instancecheck__(instance)


def _new(cls: type, *_args: Any, **_options: Any) -> Any:
    """``__new__`` of a look-alike."""
    return object.__new__(_real(cls))


def _make_look_alike(real: type, *bases: type) -> None:
    names = {name: getattr(real, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= {"__new__": _new, _REAL: real}
    type.__setattr__(real, _ALIKE, _LookAlike(real.__name__, bases, names))


def _make_look_alike_of_subclass(real: type) -> None:
    if type(real) is not type:  # its metaclass may forbid another class
        type.__setattr__(real, _ALIKE, None)
        return
    base = next(alike for cls in real.__mro__ if (alike := vars(cls).get(_ALIKE)))
    # First a base that keeps it from the subclass's own __init_subclass__.
    quiet = type("_Quiet", (), {"__init_subclass__": classmethod(lambda _: None)})
    _make_look_alike(real, quiet, real, base)


def _real(cls: type) -> type:
    """The class that a look-alike stands for, or one derived from look-alikes would be without."""
    if not isinstance(cls, _LookAlike) or _REAL in vars(cls):
        return vars(cls).get(_REAL, cls)  # type: ignore[no-any-return]
    own = namespace(cls)
    functions = [value for value in own.values() if isinstance(value, FunctionType)]
    if any("__class__" in function.__code__.co_freevars for function in functions):
        return cls  # their super() means this very class: it stays, and is not traced
    real = type(cls.__name__, tuple(map(_real, cls.__bases__)), own)
    type.__setattr__(cls, _REAL, real)
    return real

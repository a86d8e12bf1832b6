"""How our modules meet torch's tools: TorchScript, torch.fx and torch.ao.quantization.

Each tool knows torch.nn's classes by name. Where it can treat ours alike, we make it; where it
cannot, an error or warning names the remedy.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import fx, nn


class Tools:
    """A base of every layer and cell."""

    def _get_name(self) -> str:
        """What ``print(model)`` shows: whose layer it is."""
        cls = type(self)
        return f"{__package__}.{cls.__name__}" if is_own(cls) else cls.__name__

    def __prepare_scriptable__(self) -> Tools:
        """Called by torch.jit.script on each module of a model."""
        if _has_our_forward(self):
            raise RuntimeError(
                f"fusedrnn: TorchScript cannot compile {type(self).__name__}: "
                + self._remedy("call fusedrnn.to_torch(model) before torch.jit.script")
            )
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":  # torch.ao gives it to every module, None to those it leaves alone
            warnings.warn(
                f"torch.ao.quantization knows torch.nn's classes only and leaves {self!r} as it "
                "is: " + self._remedy("call fusedrnn.to_torch(model) first"),
                stacklevel=2,
            )
        super().__setattr__(name, value)

    def _remedy(self, remedy: str) -> str:
        """``remedy`` where torch.nn has a class of this kind."""
        twins = (cls for cls in type(self).__mro__ if cls.__module__ == nn.RNNBase.__module__)
        if any(not cls.__name__.endswith("Base") for cls in twins):
            return remedy
        return "torch.nn has no class of this kind, and torch.export needs none"


def as_leaf(module: Any, *arguments: Any, **keywords: Any) -> fx.Proxy | None:
    """The call of ``module`` as one node, if torch.fx traces it symbolically; else None.

    torch.fx makes leaves of modules from torch.nn and looks into all others.
    """
    if not isinstance(arguments[0], fx.Proxy) or not _has_our_forward(module):
        return None
    tracer: Any = arguments[0].tracer
    if module is tracer.root:
        return None
    given = tuple(each for each in arguments if each is not None)
    return tracer.create_proxy(  # type: ignore[no-any-return]
        "call_module", tracer.path_of_module(module), given, keywords
    )


def _has_our_forward(module: Any) -> bool:
    """Whether a subclass has left forward as it was."""
    return is_own(type(module).forward)


def is_own(defined: Any) -> bool:
    """Whether a class or function was defined in this package."""
    return bool(defined.__module__.partition(".")[0] == __package__)

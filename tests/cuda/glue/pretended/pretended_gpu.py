"""torch as it is beside a GPU, where there is none: see sitecustomize.py."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "a GPU that is not there"
# What torch.cuda's functions return.
TOLD: dict[str, Any] = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "get_device_capability": (9, 0),
    "get_device_name": NAME,
    "get_device_properties": SimpleNamespace(
        name=NAME, major=9, minor=0, multi_processor_count=132
    ),
    "synchronize": None,
    "graph_pool_handle": (0, 1),
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "reset_peak_memory_stats": None,
    "set_device": None,
    "_sleep": None,
}


def here(value: Any) -> Any:
    """The CPU in place of the GPU."""
    named = isinstance(value, (str, torch.device)) and str(value).split(":")[0] == "cuda"
    return torch.device("cpu") if named else value


class OnTheHost(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        kwargs = {key: here(value) for key, value in (kwargs or {}).items()}
        return func(*map(here, args), **kwargs)


class Graph(TorchDispatchMode):
    """Operators in the order in which they were called; results keep their place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for new, old in zip(tree_leaves(again), tree_leaves(result), strict=True):
                    moved = isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)
                    if moved and new.data_ptr() != old.data_ptr():
                        old.detach().copy_(new)


class Event:
    """On the host, a call has ended when it returns."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.seconds = 0.0

    def record(self, stream: object = None) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return (end.seconds - self.seconds) * 1e3


@contextmanager
def graph(taken: Graph, pool: object = None, stream: object = None) -> Iterator[None]:
    with taken:
        yield


def pretend() -> None:
    OnTheHost().__enter__()  # type: ignore[no-untyped-call]
    set_default = torch.set_default_device
    torch.set_default_device = lambda device: set_default(here(device))
    for name, value in TOLD.items():
        setattr(torch.cuda, name, lambda *_, value=value: value)
    for name in ("Stream", "stream", "current_stream"):
        setattr(torch.cuda, name, getattr(torch.cpu, name))
    torch.cuda.CUDAGraph = Graph  # type: ignore[assignment,misc]
    torch.cuda.Event = Event  # type: ignore[assignment,misc]
    torch.cuda.graph = graph  # type: ignore[assignment,misc]
    profile = torch.profiler.profile
    torch.profiler.profile = lambda activities: profile()  # type: ignore[assignment,misc]
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign]


def load() -> None:
    """The CUDA half on the host, in place of the CPU kernels."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module("torch_glue_plugin")
    from fusedrnn import _C, ops, plan

    for module in (_C, ops):
        module.cuda_device = lambda _: dict(plan.GPUS["sm_90"])  # type: ignore[attr-defined]

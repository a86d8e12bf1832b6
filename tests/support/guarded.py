"""Processes in which torch's memory ends where tensors do; see kernels/cpp/guard_pages.cpp."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from support.commands import compiler, output_of
from support.paths import TESTS

ENDS, BEGINNINGS = 1, 2


def library(folder: Path) -> str:
    """The allocator to preload, built in ``folder``."""
    built = str(folder / "guard_pages.so")
    source = str(TESTS / "kernels" / "cpp" / "guard_pages.cpp")
    output_of([*compiler(), "-std=c++20", "-O2", "-shared", "-fPIC", source, "-o", built])
    return built


def environment(preloaded: str, isa: str) -> dict[str, str]:
    """For a process with it, this instruction set and the tests' helpers."""
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "LD_PRELOAD": os.pathsep.join(filter(None, [preloaded, os.environ.get("LD_PRELOAD", "")])),
        "FUSEDRNN_CPU_ISA": isa,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def guard(side: int) -> int:
    """Guard ENDS or BEGINNINGS from here on, 0: neither. Returns how many blocks were guarded."""
    process: Any = ctypes.CDLL(None)
    count = int(process.guard_pages(side)) if hasattr(process, "guard_pages") else 0
    if count < 0:
        sys.exit("guard_pages: no addresses to be had")
    return count

"""Compiles parts of the extension as setup.py would not: under sanitizers, for another machine."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fcntl import LOCK_EX, flock
from hashlib import md5
from pathlib import Path

import pytest
import torch

from fusedrnn import _C
from support.commands import compiler, output_of
from support.paths import ROOT

KERNELS = sorted((ROOT / "csrc" / "cpu").rglob("*.cpp"))
LANGUAGE = ["-std=c++20", f"-I{ROOT / 'csrc'}"]

SHIPPED = ["-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]  # as setup.py does
# Of the undefined, what AddressSanitizer sees itself is left out, and alignment, which triples the
# time to compile: vectors are only accessed through a type with the alignment of an element.
ADDRESS = [
    *["-O1", "-g1", "-fPIC", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "-fno-sanitize=alignment,null,object-size,pointer-overflow,vptr",
]


def compiled(
    compiler: Sequence[str], sources: Sequence[Path], flags: Sequence[str], to: Path
) -> list[str]:
    """Objects of the sources, made two at a time in this order."""

    def compile_one(source: Path) -> str:
        target = str(to / f"{source.parent.name}_{source.stem}.o")
        output_of([*compiler, *LANGUAGE, *flags, "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def shipped(sources: Sequence[Path]) -> list[str]:
    """What setup.py made of sources of the kernels; nothing if one of them has changed since, or
    where CXX asks for another compiler than it may have used."""
    if "CXX" in os.environ:
        return []
    tag = f"{sys.platform}-{sys.implementation.cache_tag}-torch{torch.__version__}"
    folder = ROOT / "build" / f"objects-{tag}"
    objects = [folder / source.relative_to(ROOT).with_suffix(".o") for source in sources]
    read = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.h"), *sources]
    changed = max(path.stat().st_mtime for path in read)
    made = all(path.exists() and path.stat().st_mtime > changed for path in objects)
    return [str(path) for path in objects] if made else []


def runs_here(kernels: Path) -> bool:
    """Whether this machine has the instruction set that a source of kernels is for, if for one."""
    isa = kernels.stem.removeprefix("kernels_")
    return isa == kernels.stem or isa in _C.cpu_isas()


def kernels(place: pytest.TempPathFactory, *flags: str) -> list[str]:
    """Objects of the CPU kernels, made once for all tests of a run, in whichever process; those
    that this machine cannot run as they are shipped."""
    root = place.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / f"kernels-{md5(shlex.join(flags).encode()).hexdigest()}"
    folder.mkdir(exist_ok=True)
    made = folder / "made"
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not made.exists():
            others = [path for path in KERNELS if not runs_here(path)]
            objects = shipped(others) or compiled(compiler(), others, SHIPPED, folder)
            mine = [path for path in KERNELS if runs_here(path)]
            made.write_text("\n".join(objects + compiled(compiler(), mine, flags, folder)))
    return made.read_text().splitlines()

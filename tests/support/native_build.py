"""Compiles parts of the extension as setup.py would not: under sanitizers, for another machine."""

from __future__ import annotations

import json
import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from fusedrnn import _C, _binary
from support.commands import compiler, output_of
from support.once import once
from support.paths import ROOT
from units import operators

KERNELS = sorted((ROOT / "csrc" / "cpu").rglob("*.cpp"))
FROZEN = sorted((ROOT / "csrc" / "frozen").rglob("*.cpp"))
PLAN = sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))
# Of an extension without the CUDA half, in setup.py's units and in its place.
UNITS = ROOT / "build" / "units" / "csrc"
OPERATORS, BINDINGS = operators(ROOT, UNITS, cuda=False)
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
    read = [
        ROOT / "setup.py",
        *(ROOT / "csrc").rglob("*.h"),
        *(ROOT / "csrc" / "ops").rglob("*.cpp"),
    ]
    changed = max(path.stat().st_mtime for path in read)
    made = all(
        each.exists() and each.stat().st_mtime > max(changed, source.stat().st_mtime)
        for source, each in zip(sources, objects, strict=True)
    )
    return [str(path) for path in objects] if made else []


def runs_here(kernels: Path) -> bool:
    """Whether this machine has the instruction set that a source of kernels is for, if for one."""
    isa = kernels.stem.removeprefix("kernels_")
    return isa == kernels.stem or isa in _C.cpu_isas()


def is_of(kernels: Path, isa: str) -> bool:
    """Whether a source is of kernels for ``isa``, or of no instruction set's alone."""
    return not isa or not kernels.stem.startswith("kernels_") or kernels.stem.endswith(f"_{isa}")


def kernels(place: pytest.TempPathFactory, *flags: str, isa: str = "") -> list[str]:
    """Objects of the CPU kernels; those that this machine cannot run as they are shipped, and so
    those of another instruction set than ``isa``, where one is named."""

    def make(folder: Path) -> str:
        mine = [path for path in KERNELS if runs_here(path) and is_of(path, isa)]
        others = [path for path in KERNELS if path not in mine]
        objects = shipped(others) or compiled(compiler(), others, SHIPPED, folder)
        return "\n".join(objects + compiled(compiler(), mine, flags, folder))

    return once(place, shlex.join(["kernels", *flags, isa]), make).splitlines()


def torch_flags() -> list[str]:
    """What OPERATORS and BINDINGS are compiled with."""
    headers = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    flags = ["-fopenmp", "-fvisibility=hidden", "-fPIC"]
    flags += ["-DTORCH_EXTENSION_NAME=_C", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    return flags + [flag for path in headers for flag in ("-isystem", path)]


def package(place: Path, objects: Sequence[str], *flags: str) -> Path:
    """A fusedrnn in ``place`` whose extension is linked from these objects."""
    library = place / "fusedrnn" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    library.parent.mkdir()
    for source in [*(ROOT / "fusedrnn").glob("*.py"), ROOT / "fusedrnn" / "_ops"]:
        (library.parent / source.name).symlink_to(source)
    folders = cpp_extension.library_paths()
    libraries = [f"-L{path}" for path in folders]
    libraries += ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    libraries += [str(path) for folder in folders for path in Path(folder).glob("libgomp*.so*")]
    output_of([*compiler(), "-shared", *flags, *objects, *libraries, "-o", str(library)])
    info = _binary.build_info() | {"sources": _binary.digest(ROOT / "csrc")}
    library.with_name(_binary.INFO).write_text(json.dumps(info))
    return library.parent

"""Finds the compiled half, ``_C``, and refuses one that does not fit before it is loaded.

Beside every binary the build writes ``_build.json``: what it was built from, and for which torch.
So a binary for another torch is refused with a message that names both versions, not with an
undefined symbol, and a binary older than its C++ sources is never used. In a checkout the
sources hide the installed package, so the installed binary is looked for on sys.path.

setup.py imports this file on its own, for ``digest`` and ``INFO``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from importlib import import_module, util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

INFO = "_build.json"
HERE = Path(__file__).parent.resolve()
CSRC = HERE.parent / "csrc"  # only a checkout has it

_built: dict[str, Any] = {}


def digest(csrc: Path) -> str:
    """A hash of the C++ and CUDA sources, to tell whether a binary was built from them."""
    sources = [path for path in csrc.rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    found = hashlib.sha256()
    for path in sorted(sources):
        found.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def build_info() -> dict[str, Any]:
    """What the build wrote about the binary in use: version, torch, python, compiler, sources
    (their digest), cuda (whether it has the CUDA half), cuda_toolkit, cuda_arches, cuda_missing
    (why it has not), and file (the binary's path)."""
    return dict(_built)


def load() -> None:
    """Import the first binary that fits as ``fusedrnn._C``.

    Raises:
        ImportError: no binary fits, or there is none. The message says what to run.
    """
    running = import_module("torch").__version__
    reasons = []
    for binary in _binaries():
        info = _info(binary)
        reason = _misfit(binary, info, running)
        if reason is None:
            try:
                _import(binary)
            except ImportError as error:
                reason = f"fusedrnn: {binary} does not load ({error}). {_again()}"
                raise ImportError(reason, name="fusedrnn._C") from error
            _built.update(info, file=str(binary))
            return
        reasons.append(reason)
    raise ImportError(reasons[0] if reasons else _missing(), name="fusedrnn._C")


def _binaries() -> Iterator[Path]:
    """Binaries for this Python: the one beside this file, and in a checkout also those on sys.path,
    which ``_misfit`` compares with the sources."""
    folders = [HERE]
    if CSRC.exists():
        folders += [Path(entry).resolve() / "fusedrnn" for entry in sys.path]
    for folder in dict.fromkeys(folders):
        for suffix in EXTENSION_SUFFIXES:
            if (binary := folder / f"_C{suffix}").exists():
                yield binary


def _info(binary: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads(binary.with_name(INFO).read_text())
    except (OSError, ValueError):
        return {}
    return info


def _misfit(binary: Path, info: dict[str, Any], running: str) -> str | None:
    """Why a binary cannot be used with the running torch, and the remedy; None if it can."""
    if not info:
        return f"fusedrnn: {binary} does not say what it was built from. {_again()}"
    built = info["torch"]
    if minor(built) != minor(running):
        return (
            f"fusedrnn was built against torch {built} and cannot run with torch {running}: build "
            f"it again (`{_build()}`) or `pip install torch=={minor(built)}.*`"
        )
    if CSRC.exists() and info["sources"] != digest(CSRC):
        return f"fusedrnn: {binary} is not built from {CSRC} as it is now. {_again()}"
    return None


def _missing() -> str:
    others = ", ".join(sorted(path.name for path in HERE.glob("_C.*.so")))
    found = f"only {others} is there" if others else "there is none"
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        f"fusedrnn: its compiled half is not installed for {sys.executable}, Python {version} "
        f"({found}). Build it:\n    {_build()}"
    )


def _build() -> str:
    """The command that builds the binary anew."""
    source = HERE.parent if CSRC.exists() else "CHECKOUT"
    return f"{sys.executable} -m pip install --force-reinstall --no-deps {source}"


def _again() -> str:
    return f"Build it again:\n    {_build()}"


def minor(version: str) -> str:
    """The minor version: "2.13" of "2.13.0+cpu". torch promises no compatibility beyond it."""
    return ".".join(version.split(".")[:2])


def _import(binary: Path) -> None:
    spec = util.spec_from_file_location("fusedrnn._C", binary)
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fusedrnn._C"] = module
    sys.modules["fusedrnn"]._C = module  # type: ignore[attr-defined]


def cuda_remedy() -> str:
    """The command that builds the CUDA half."""
    return f"FUSEDRNN_CUDA=1 {_build()}"


def cuda_missing() -> str:
    """Why the binary in use has no CUDA half, and the command that builds it."""
    reason = _built["cuda_missing"]
    return f"fusedrnn was built without its CUDA half ({reason}); `{cuda_remedy()}` builds it"

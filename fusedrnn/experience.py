"""Keeps what ``fusedrnn tune`` has measured: one JSON file in the cache folder for each GPU,
driver, torch and build of fusedrnn. It is read only when a CUDA device is first used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import _C, _binary

FORM = 1  # the file's format
# The fields that identify a class of problems and a candidate, and the fields of a measurement.
CLASS = ("mode", "H", "B", "D", "L", "tf32")
CANDIDATE = ("backward", "training", "kernel", "tile")
MEASURED = (*CLASS, *CANDIDATE, "step_us")


@dataclass
class Experience:
    """What is known about a GPU.

    Attributes:
        measured: dicts with the keys MEASURED, as ``_C.set_measured`` takes them.
        excluded: the reason why a tile failed, by (backward, tile).
    """

    measured: list[dict[str, Any]]
    excluded: dict[tuple[bool, int], str]


def folder() -> Path:
    """FUSEDRNN_CACHE, or ``fusedrnn`` in the user's cache folder."""
    if named := os.environ.get("FUSEDRNN_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedrnn"


def key_of(index: int) -> dict[str, Any]:
    """What measurements on a CUDA device depend on: if one value differs, they do not count."""
    properties = torch.cuda.get_device_properties(index)
    info = _binary.build_info()
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "build": f"{info['sources']} {info['cuda_toolkit']} {info['cuda_arches']}",
    }


def _driver() -> str:
    with suppress(OSError):
        said = Path("/proc/driver/nvidia/version").read_text()
        if found := re.search(r"\b\d+\.\d+(\.\d+)?\b", said):
            return found[0]
    return f"CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]


def path_of(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder() / f"gpu-{digest}.json"


def read(key: dict[str, Any]) -> Experience | None:
    """What is kept for this key; None if there is nothing. A damaged file is ignored with a
    warning."""
    path = path_of(key)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        _ignore(path, str(error))
        return None
    try:
        return _parsed(json.loads(text), key)
    except (ValueError, TypeError, KeyError) as error:
        _ignore(path, f"{type(error).__name__}: {error}")
        return None


def _parsed(content: Any, key: dict[str, Any]) -> Experience:
    if content["form"] != FORM or content["key"] != key:
        raise ValueError("it was written for another GPU, driver, torch or build")
    measured = [{name: entry[name] for name in MEASURED} for entry in content["measured"]]
    for entry in measured:
        sizes = entry["H"], entry["B"]
        if _C.cuda_class(*sizes) != sizes or not 0 < float(entry["step_us"]) < float("inf"):
            raise ValueError(f"no figure of a class of problems: {entry}")
    excluded = {}
    for entry in content["excluded"]:
        backward, tile = entry["backward"], entry["tile"]
        if not isinstance(backward, bool) or type(tile) is not int or not 0 <= tile < 64:
            raise ValueError(f"no kernel is numbered {tile!r}")
        excluded[backward, tile] = str(entry["reason"])
    return Experience(measured, excluded)


def _ignore(path: Path, reason: str) -> None:
    warnings.warn(
        f"fusedrnn: {path} is ignored ({reason.splitlines()[0]}); `python -m fusedrnn tune` "
        "writes it anew",
        stacklevel=4,
    )


def add(key: dict[str, Any], found: Experience, tried: Iterable[tuple[bool, int]]) -> Experience:
    """Add what was found to the file, and return all of it. A new figure replaces the old one of
    the same candidate and class. A ``tried`` tile that has not failed now is no longer excluded."""
    path = path_of(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged file is replaced here, so nobody needs to know
        before = read(key) or Experience([], {})
        tried = set(tried)
        excluded = {k: why for k, why in before.excluded.items() if k not in tried} | found.excluded
        places = {tuple(entry[n] for n in (*CLASS, *CANDIDATE)): entry for entry in before.measured}
        places |= {tuple(entry[n] for n in (*CLASS, *CANDIDATE)): entry for entry in found.measured}
        measured = [m for m in places.values() if (m["backward"], m["tile"]) not in excluded]
        both = Experience(measured, excluded)
        _write(path, key, both)
    return both


def _write(path: Path, key: dict[str, Any], known: Experience) -> None:
    content = {
        "form": FORM,
        "key": key,
        "measured": known.measured,
        "excluded": [
            {"backward": backward, "tile": tile, "reason": reason}
            for (backward, tile), reason in sorted(known.excluded.items())
        ],
    }
    # Written aside and renamed, so that a reader finds the whole old file or the whole new one.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as made:
        json.dump(content, made, indent=1)
    Path(made.name).replace(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time change the file; without the lock, two at once would keep only one
    process's figures. On a file system without locks that can still happen, and nothing worse."""
    with path.with_suffix(".lock").open("w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def apply(index: int, known: Experience) -> None:
    """Make this process plan for a CUDA device by what is known.

    Raises:
        TypeError, ValueError: ``known`` is malformed. Nothing was changed then.
    """
    _C.set_measured(index, known.measured)
    for backward, tile in known.excluded:
        _C.exclude_tile(index, backward, tile)


def load(index: int) -> None:
    """Read and apply what is kept for a CUDA device, if anything is."""
    if not any(folder().glob("gpu-*.json")):
        return
    key = key_of(index)
    known = read(key)
    if known is None:
        return
    try:
        apply(index, known)
    except (ValueError, TypeError, KeyError) as error:
        _ignore(path_of(key), str(error))

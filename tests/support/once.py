"""What takes long to make and several test files need: made once in a run of pytest, by whichever
of its processes is first."""

from __future__ import annotations

import os
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from hashlib import md5
from pathlib import Path

import pytest


def once(place: pytest.TempPathFactory, name: str, make: Callable[[Path], str]) -> str:
    """What ``make`` returned for this name, given a folder to work in."""
    root = place.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / f"once-{md5(name.encode()).hexdigest()}"
    folder.mkdir(exist_ok=True)
    returned = folder / "returned"
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not returned.exists():
            returned.write_text(make(folder))
    return returned.read_text()

"""Files of frozen layers, and copies of them whose header says something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a file, and what comes after it."""
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:begin]), whole[begin:]


def rewritten(path: Path, change: Callable[[dict[str, Any]], object], data: bytes = b"") -> None:
    """The same file with another header, and with ``data`` after it."""
    header, old = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + old + data)


def about(**said: str) -> Callable[[dict[str, Any]], None]:
    """A change of what the metadata say."""
    return lambda header: header["__metadata__"].update(said)


def of(tensor: str, **said: Any) -> Callable[[dict[str, Any]], None]:
    """A change of what is said of a tensor."""
    return lambda header: header[tensor].update(said)

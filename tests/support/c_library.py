"""``libfusedrnn_cpu.so`` by ctypes. It imports nothing of torch, so that a process without torch
can use it too: as a program it tries damaged copies of a file.

    python c_library.py LIBRARY FILE COPIES
"""

from __future__ import annotations

import ctypes
import random
import sys
from pathlib import Path
from typing import Any

FLOATS = ctypes.POINTER(ctypes.c_float)
HANDLE, SIZE, TEXT, STATUS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "version": (TEXT, []),
    "error": (TEXT, []),
    "load": (HANDLE, [TEXT]),
    "free": (None, [HANDLE]),
    "input_size": (SIZE, [HANDLE]),
    "output_size": (SIZE, [HANDLE]),
    "hidden_size": (SIZE, [HANDLE]),
    "num_layers": (SIZE, [HANDLE]),
    "mode": (TEXT, [HANDLE]),
    "dtype": (TEXT, [HANDLE]),
    "bytes": (SIZE, [HANDLE]),
    "stream_new": (HANDLE, [HANDLE, SIZE]),
    "stream_free": (None, [HANDLE]),
    "rows": (SIZE, [HANDLE]),
    "step": (STATUS, [HANDLE, FLOATS, FLOATS]),
    "run": (STATUS, [HANDLE, FLOATS, FLOATS, SIZE]),
    "reset": (STATUS, [HANDLE, SIZE]),
    "join": (STATUS, [HANDLE, SIZE]),
    "leave": (STATUS, [HANDLE, SIZE]),
    "get_state": (STATUS, [HANDLE, FLOATS, FLOATS]),
    "set_state": (STATUS, [HANDLE, FLOATS, FLOATS]),
}


class Library:
    """The functions of ``fusedrnn.h``, without their prefix."""

    def __init__(self, path: str | Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, f"fusedrnn_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # for mypy
        raise AttributeError(name)

    def error_text(self) -> str:
        return str(self.error().decode(errors="replace"))


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A copy that was cut off, or in which one to four places, most in the header, are others."""
    copy = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    if chance.random() < 0.1:
        return bytes(copy[: chance.randrange(len(copy))])
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(header if chance.random() < 0.9 else len(copy))
        how = chance.randrange(4)
        if how == 0:
            copy[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            copy[at] = chance.choice(b'"\\{}[]:,0129-ex \x00\xff')
        elif how == 2:  # from another place
            other = chance.randrange(len(copy))
            copy[at : at + 4] = copy[other : other + 4]
        else:
            del copy[at]
    return bytes(copy)


def main(library: str, file: str, copies: str) -> None:
    """Print how many damaged copies were refused, and how many were not, which have to run."""
    c, data, chance = Library(library), Path(file).read_bytes(), random.Random(0)
    floats = (ctypes.c_float * 4096)()
    refused = ran = 0
    for _ in range(int(copies)):
        Path(f"{file}.damaged").write_bytes(damaged(data, chance))
        model = c.load(f"{file}.damaged".encode())
        if not model:
            assert c.error_text().startswith("fusedrnn: cannot read "), c.error_text()
            refused += 1
            continue
        stream = c.stream_new(model, 2)
        c.free(model)
        assert c.run(stream, floats, ctypes.cast(ctypes.byref(floats, 8192), FLOATS), 3) == 0
        c.stream_free(stream)
        ran += 1
    maps = Path("/proc/self/maps").read_text()
    assert not any(word in maps for word in ("torch", "libc10", "gomp")), maps
    print(refused, ran)


if __name__ == "__main__":
    main(*sys.argv[1:])

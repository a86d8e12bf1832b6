"""Shows the progress of a build in `pip install -v`: one line a file, and how many are left."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def told(message: str) -> None:
    print(f"fusedrnn: {message}", flush=True)


@contextmanager
def progress(files: int) -> Iterator[None]:
    """Shorten ninja's output while the block runs: instead of a whole command, print which file was
    compiled and how many are left. Other lines, such as errors, pass unchanged."""
    begin = time.monotonic()
    sys.stdout.flush()
    terminal = os.dup(1)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)

    def relay() -> None:
        with os.fdopen(reader, errors="replace") as lines, os.fdopen(terminal, "w") as out:
            for line in lines:
                compiled = re.match(r"\[(\d+)/(\d+)\] .* -c (?:\S*/)?(csrc/\S+)", line)
                if compiled:
                    left = int(compiled[2]) - int(compiled[1])
                    seconds = time.monotonic() - begin
                    files_left = f"{left} file{'' if left == 1 else 's'} left"
                    line = f"fusedrnn: compiled {compiled[3]}, {files_left}, {seconds:.0f} s\n"
                out.write(line)
                out.flush()

    told(f"compiling {files} files, of which only those that changed")
    relaying = threading.Thread(target=relay)
    saved = os.dup(terminal)
    relaying.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
        relaying.join()

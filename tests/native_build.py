"""Compiles parts of the extension as setup.py would not: under sanitizers, for another machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fcntl import LOCK_EX, flock
from hashlib import md5
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
LANGUAGE = ["-std=c++20", f"-I{ROOT / 'csrc'}"]

# Calls in place of inline checks compile twice as fast. Of the undefined, what AddressSanitizer
# sees itself is left out, and alignment, which triples the time to compile: vectors are only
# accessed through a type with the alignment of an element.
ADDRESS = [
    *["-O1", "-g1", "-fPIC", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "-fno-sanitize=alignment,null,object-size,pointer-overflow,vptr",
    "--param=asan-instrumentation-with-call-threshold=0",
]


def compiler() -> list[str]:
    """The C++ compiler: CXX, or c++."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(command[0]):
        pytest.fail(f"no C++ compiler {command[0]!r}: install one, or name it in CXX")
    return command


def output_of(command: Sequence[str], *, seconds: float = 900, **environment: str) -> str:
    """What a command prints; a test that needs it fails with all of it when the command does."""
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        pytest.fail(f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def compiled(
    compiler: Sequence[str], sources: Sequence[Path], flags: Sequence[str], to: Path
) -> list[str]:
    """Objects of the sources, made two at a time in this order."""

    def compile_one(source: Path) -> str:
        target = str(to / f"{source.stem}.o")
        output_of([*compiler, *LANGUAGE, *flags, "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def kernels(place: pytest.TempPathFactory, *flags: str) -> list[str]:
    """Objects of the CPU kernels, made once for all tests of a run, in whichever process."""
    root = place.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / f"kernels-{md5(shlex.join(flags).encode()).hexdigest()}"
    folder.mkdir(exist_ok=True)
    made = folder / "made"
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not made.exists():
            made.write_text("\n".join(compiled(compiler(), KERNELS, flags, folder)))
    return made.read_text().splitlines()

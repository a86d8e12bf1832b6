"""What the tests that compile CUDA sources share: commands, and the table of persistent kernels."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from support.paths import CSRC, HOST


class Done(NamedTuple):
    status: int
    said: str


def done(command: list[str], **environment: str) -> Done:
    """How a command ended, and what it printed to either stream."""
    ended = subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=600,
    )
    return Done(ended.returncode, ended.stdout)


def output_of(command: list[str], **environment: str) -> str:
    """What a command prints; a test that needs it fails with all of it when the command does."""
    status, said = done(command, **environment)
    if status:
        pytest.fail(f"{shlex.join(command)}: {status}\n{said}")
    return said


def cxx() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(command[0]):
        pytest.fail(f"no C++ compiler {command[0]!r}: install one, or name it in CXX")
    return command


class Kernel(NamedTuple):
    """A persistent kernel by csrc/cuda/tiles.h: a row of its table and a pass."""

    row: int
    direction: str
    cell: str
    hidden: int
    cluster: int
    rows: int
    threads: int
    registers: int
    shared_bytes: int
    lanes: int  # threads of a warp that split a sum
    outputs: int  # sums of a thread for one batch row


def kernels(folder: Path) -> list[Kernel]:
    """The whole table, by a program that includes it and is built in `folder`."""
    program = str(folder / "tiles_table")
    output_of([*cxx(), "-std=c++20", f"-I{CSRC}", str(HOST / "tiles_table.cpp"), "-o", program])
    lines = re.findall(r"^(\d+) (\w+) (\w+)((?: \d+){8})$", output_of([program]), re.MULTILINE)
    table = [
        Kernel(int(row), direction, cell, *map(int, rest.split()))
        for row, direction, cell, rest in lines
    ]
    assert table
    return table

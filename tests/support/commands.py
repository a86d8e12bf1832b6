"""Commands that tests run: a compiler, what it made, and what they print."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from support.paths import ROOT

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="there is no nvcc on PATH")
ARM64 = ["aarch64-linux-gnu-g++", "qemu-aarch64"]
SECONDS = 1800  # more than any takes


class Done(NamedTuple):
    status: int
    said: str


def done(command: Sequence[str], **environment: str) -> Done:
    """How a command, run in the checkout, ended, and what it printed to either stream."""
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=SECONDS,
    )
    return Done(ended.returncode, ended.stdout)


def output_of(command: Sequence[str], **environment: str) -> str:
    """What a command prints; a test that needs it fails with all of it when the command does."""
    status, said = done(command, **environment)
    if status:
        pytest.fail(f"{shlex.join(command)}: {status}\n{said}", pytrace=False)
    return said


def compiler() -> list[str]:
    """The C++ compiler: CXX, or c++."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(command[0]):
        pytest.fail(f"no C++ compiler {command[0]!r}: install one, or name it in CXX")
    return command

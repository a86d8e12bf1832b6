"""Whether the check that holds the layers to the definition would find a bug in what cuts rows:
resets, lengths, and pieces whose gates backward makes again (cpu_bugs.py has the bugs)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusedrnn import _binary
from support.commands import compiler
from support.cpu_bugs import BUGS, DECLARED, DEFINED, plant_all
from support.native_build import (
    BINDINGS,
    FROZEN,
    KERNELS,
    OPERATORS,
    PLAN,
    compiled,
    package,
    shipped,
    torch_flags,
)
from support.paths import CSRC, TESTS

# What the bugs reach: the operators, and the kernels of an instruction set.
ISA = "baseline"
REACHED = CSRC / "cpu" / "isa" / f"kernels_{ISA}.cpp"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fusedrnn with all of the bugs, none of which acts until it is told to."""
    place = tmp_path_factory.mktemp("planted")
    copy = shutil.copytree(CSRC, place / "sources")
    plant_all(copy)
    declared, defined = place / "declared.h", place / "defined.cpp"
    declared.write_text(DECLARED)
    defined.write_text(DEFINED)
    flags = ["-O0", *torch_flags()]
    # Quoted headers are looked for in the copy first.
    reached = [OPERATORS, defined, copy / REACHED.relative_to(CSRC)]
    bugs = ["-iquote", str(copy), "-include", str(declared)]
    objects = compiled(compiler(), reached, [*flags, *bugs], place)
    others = [BINDINGS, *FROZEN, *PLAN, *(path for path in KERNELS if path != REACHED)]
    made = [] if _binary.build_info()["cuda"] else shipped(others)
    return package(place, objects + (made or compiled(compiler(), others, flags, place)))


@pytest.fixture(scope="module")
def outcomes(planted: Path) -> dict[str, str]:
    """What became of each bug, by its name."""
    environment = {
        "FUSEDRNN_CPU_ISA": ISA,
        "PYTHONPATH": os.pathsep.join([str(planted.parent), str(TESTS)]),
    }
    done = subprocess.run(
        [sys.executable, str(TESTS / "support" / "cpu_bugs.py")],
        cwd=planted.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not done.returncode, done.stderr
    return dict(line.split(": ") for line in done.stdout.splitlines())


def test_without_a_bug_the_check_passes(outcomes: dict[str, str]) -> None:
    assert outcomes["nothing"] == "not seen"


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(bug: str, outcomes: dict[str, str]) -> None:
    assert outcomes[bug] == "seen"

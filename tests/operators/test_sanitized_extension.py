"""The operators under AddressSanitizer and UndefinedBehaviorSanitizer: the extension is built once
more, and the tests of layers run on it, and on torch's memory, in a process of their own.

The threads are torch's OpenMP, whose barriers ThreadSanitizer cannot see: under that one the
kernels run on threads of the test's own (test_kernels_native.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusedrnn import _C
from support.commands import compiler, output_of
from support.native_build import (
    ADDRESS,
    BINDINGS,
    FROZEN,
    OPERATORS,
    PLAN,
    compiled,
    kernels,
    package,
    torch_flags,
)
from support.paths import TESTS

# All but the largest weights, which take as long as the others together.
FILES = ("test_layers", "test_freeze", "test_stream")
SELECTION = [*(str(TESTS / "layers" / f"{name}.py") for name in FILES)]
SELECTION += ["-k", "not H1056 and not overflow"]

# An input whose memory ends one element early.
OVERRUN = """
import ctypes, fusedrnn, torch
print(fusedrnn.__file__, flush=True)
short = ctypes.CDLL(None).malloc
short.restype, short.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
values = (ctypes.c_float * 60).from_address(short(4 * 59))
fusedrnn.LSTM(3, 5)(torch.frombuffer(values, dtype=torch.float32).view(5, 4, 3))
"""


@pytest.fixture(scope="module", name="package")
def watched_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fusedrnn whose extension is watched."""
    place = tmp_path_factory.mktemp("sanitized")
    # The bindings, which only hand arguments over, are not watched.
    objects = compiled(compiler(), [BINDINGS], ["-O0", *torch_flags()], place)
    objects += compiled(compiler(), [OPERATORS, *FROZEN, *PLAN], [*ADDRESS, *torch_flags()], place)
    objects += kernels(tmp_path_factory, *ADDRESS, isa=_C.cpu_isa())
    return package(place, objects, *(flag for flag in ADDRESS if flag.startswith("-f")))


def watched(package: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with that package; whatever a sanitizer finds ends it with a failure."""
    runtimes = [output_of([*compiler(), f"-print-file-name=lib{n}.so"]) for n in ("asan", "ubsan")]
    environment = {
        "LD_PRELOAD": ":".join(runtime.strip() for runtime in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": os.pathsep.join([str(package.parent), str(TESTS)]),
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=package.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_one_element_beyond_the_input_is_seen(package: Path) -> None:
    done = watched(package, "-c", OVERRUN)
    assert done.stdout == f"{package / '__init__.py'}\n"
    assert done.returncode
    assert "heap-buffer-overflow" in done.stderr
    assert "READ of size" in done.stderr


def test_layers_pass_their_tests_under_the_sanitizers(package: Path) -> None:
    done = watched(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SELECTION)
    assert not done.returncode, f"{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout

"""No kernel touches a byte that is not its tensor's, and every byte of a result is written.

Each instruction set runs the core problems with all of torch's blocks (inputs, weights, states,
slopes, reserve, workspace, results) against a page that kills the process when touched, once at
their ends and once at their beginnings. Then with blocks that hold nan until they are written.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fusedrnn import _C
from support.guarded import BEGINNINGS, ENDS, environment, library
from support.problems import CORE, Problem, check

GUARDED = """
import torch
from support import problems
from support.guarded import guard
for side in ({sides}):
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for problem in problems.CORE:
            print(side, threads, problem, flush=True)
            before = guard(side)
            ours = problems.run(problem, "fusedrnn")
            assert guard(0) >= before + 10
            again = problems.run(problem, "fusedrnn")
            for name, value in ours.items():
                other = again[name]
                assert value is other is None or torch.equal(value, other), name
"""
FROZEN = """
import fusedrnn, torch
from support.guarded import guard
for side in ({sides}):
    for name in ("RNN", "LSTM", "GRU", "MGU"):
        for T, B, I, H in ((3, 1, 5, 7), (9, 17, 16, 64), (5, 4, 33, 131)):
            for dtype in (None, torch.bfloat16, torch.int8):
                layer = getattr(fusedrnn, name)(I, H, 2)
                print(side, name, T, B, I, H, dtype, flush=True)
                before = guard(side)
                frozen = fusedrnn.freeze(layer, dtype)
                x = torch.randn(T, B, I)
                output = frozen(x)[0]
                stream = frozen.stream(B)
                assert torch.equal(stream.run(x[1:]), frozen(x[1:])[0])
                stream.reset()
                for one, expected in zip(x, output):
                    assert torch.equal(torch.from_numpy(stream.step(one)), expected)
                assert frozen(x[:1])[0].isfinite().all()
                assert guard(0) >= before + 10
"""
TOUCH = """
import ctypes, os, torch
from support.guarded import BEGINNINGS, ENDS, guard
for side, at in ((ENDS, 400), (ENDS, 399), (BEGINNINGS, -1), (BEGINNINGS, 0)):
    guard(side)
    block = torch.zeros(100)
    guard(0)
    if not (child := os.fork()):
        ctypes.string_at(block.data_ptr() + at, 1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def allocator(tmp_path_factory: pytest.TempPathFactory) -> str:
    return library(tmp_path_factory.mktemp("guard"))


def ended(code: str, allocator: str, isa: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(allocator, isa),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_no_byte_beside_a_tensor_is_touched(isa: str, allocator: str) -> None:
    result = ended(GUARDED.format(sides=f"{ENDS}, {BEGINNINGS}"), allocator, isa)
    last = result.stdout.splitlines()[-1:]
    assert result.returncode == 0, f"{result.returncode} in {last}: {result.stderr}"
    assert len(result.stdout.splitlines()) == 4 * len(CORE)


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_frozen_layers_and_streams_touch_no_byte_beside(isa: str, allocator: str) -> None:
    result = ended(FROZEN.format(sides=f"{ENDS}, {BEGINNINGS}"), allocator, isa)
    last = result.stdout.splitlines()[-1:]
    assert result.returncode == 0, f"{result.returncode} in {last}: {result.stderr}"
    assert len(result.stdout.splitlines()) == 2 * 4 * 3 * 3


def test_a_guarded_tensor_ends_where_it_should(allocator: str) -> None:
    result = ended(TOUCH, allocator, _C.cpu_isa())
    died = str(-signal.SIGSEGV)
    assert result.stdout.split() == [died, "0", died, "0"], result.stderr


@pytest.fixture
def _nan_until_written() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("_nan_until_written")
@pytest.mark.parametrize("problem", CORE, ids=str)
def test_every_element_of_outputs_and_gradients_is_written(problem: Problem) -> None:
    assert torch.empty(3).isnan().all()
    check(problem)

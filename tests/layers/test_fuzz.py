"""Random calls of everything, held to float64 (fuzz.py says what must hold, fuzz_cases.py
draws them).

As many as --fuzz says, the same each time for the same --fuzz-seed, split over processes and
instruction sets, and with guard pages around every block. What fails is shrunk by hypothesis to a
small Case, to be fixed and then pasted into FOUND under a name that states the rule.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedrnn import _C
from fusedrnn._ops import stack
from fusedrnn.stream import Stream
from support.fuzz import Case, check
from support.guarded import environment, library
from support.paths import TESTS
from support.problems import Problem

# A process draws no more: hypothesis remembers them all, and a new process a new order.
MOST = 2000
FOUND = {
    "a unit at relu's kink may fall to either side": Case(
        Problem("RNN_RELU", T=1, B=269, I=269, H=41, L=3, hx="given"),
        needs=(False,),
        used=("output",),
        seed=556,
    ),
    "reset states alone may want a gradient": Case(
        Problem("GRU", T=1, B=1, I=1, H=7, dtype=torch.bfloat16, resets="all", reset_state="one"),
        x_grad=False,
        needs=(False,),
    ),
    "a gradient smaller than every normal number may be zero": Case(
        Problem("LSTM", T=264, B=1, I=1, H=3, form="unbatched", hx="grad"),
        x_grad=False,
        needs=(False,),
        used=("h_n",),
        scale=0.01,
    ),
}


def shares(count: int) -> list[tuple[str, int]]:
    """Instruction sets and how many cases: to the widest, which users run, half of them or more."""
    *narrower, widest = _C.cpu_isas()
    wanted = dict.fromkeys(narrower, count // 5) | {widest: count - count // 5 * len(narrower)}
    parts = []
    for isa, cases in wanted.items():
        processes = -(-cases // MOST)
        bounds = [cases * i // processes for i in range(processes + 1)] if processes else []
        parts += [(isa, end - begin) for begin, end in pairwise(bounds)]
    return sorted(parts, key=lambda part: -part[1])


def test_random_calls_are_as_accurate_as_torchs(
    pytestconfig: pytest.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allocator = library(tmp_path)
    first_seed = pytestconfig.getoption("fuzz_seed")

    def fuzz(index: int, isa: str, cases: int) -> tuple[int, str]:
        last = tmp_path / f"{index}"
        program = [sys.executable, str(TESTS / "support" / "fuzz_cases.py")]
        arguments = ["--cases", cases, "--seed", 1000 * first_seed + index, "--last", last]
        try:
            ended = subprocess.run(
                [*program, *map(str, arguments)],
                env=environment(allocator, isa),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=3600,
            )
        except subprocess.TimeoutExpired:
            return 0, f"{isa}: hangs in {last.read_text()}"
        ran = re.search(r"^ran (\d+) cases, (\w+)$", ended.stdout, re.MULTILINE)
        if ended.returncode or not ran or ran[2] != isa:
            case = last.read_text() if last.exists() else "no case"
            return 0, f"{isa}: {ended.returncode}, the last was {case}{ended.stdout}"
        return int(ran[1]), ""

    start, parts = monotonic(), shares(pytestconfig.getoption("fuzz"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(fuzz, i, *part) for i, part in enumerate(parts)]
        results = [f.result() for f in futures]
    ran = sum(count for count, _ in results)
    with capsys.disabled():
        print(f"\nfuzz: {ran} cases, seed {first_seed}, {monotonic() - start:.0f} s")
    failures = [failure for _, failure in results if failure]
    assert not failures, "\n".join(failures)
    assert ran >= pytestconfig.getoption("fuzz")


@pytest.mark.parametrize("rule", FOUND)
def test_what_the_fuzzer_once_found(rule: str) -> None:
    check(FOUND[rule])


Operator = Callable[..., Any]


def one_element_wrong(stack: Operator, *args: Any) -> Any:
    output, *states = stack(*args)
    return (output * (1 + 1e-2 * (torch.arange(output.size(-1)) == 0)), *states)


def last_element_unwritten(stack: Operator, *args: Any) -> Any:
    output, *states = stack(*args)
    return (
        torch.cat((output[..., :-1], torch.full_like(output[..., -1:], torch.nan)), -1),
        *states,
    )


def less_accurate(stack: Operator, *args: Any) -> Any:
    output, *states = stack(*args)
    return (output + 2e-6 * torch.rand_like(output), *states)


def operand_written(stack: Operator, *args: Any) -> Any:
    result = stack(*args)
    args[0].data.view(-1)[0] += 1  # behind autograd's back
    return result


def threads_matter(stack: Operator, *args: Any) -> Any:
    output, *states = stack(*args)
    return (output * (1 + 2e-7 * (torch.get_num_threads() > 1)), *states)


def gradient_missing(stack: Operator, input: Tensor, *args: Any) -> Any:
    return stack(input.detach(), *args)


def wrong_without_autograd(stack: Operator, *args: Any) -> Any:
    output, *states = stack(*args)
    return (output if torch.is_grad_enabled() else output * 1.01, *states)


PLANTED = (
    one_element_wrong,
    last_element_unwritten,
    less_accurate,
    operand_written,
    threads_matter,
    gradient_missing,
    wrong_without_autograd,
)


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_what_is_planted_is_seen(bug: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(Problem("GRU", T=5, B=3, I=4, H=9), threads=2)
    check(case)
    check(replace(case, problem=replace(case.problem, T=0)))
    operator = stack.stack
    monkeypatch.setattr(stack, "stack", lambda *args: bug(operator, *args))
    with pytest.raises(AssertionError):
        check(case)


def a_reset_late(stack: Operator, *args: Any) -> Any:
    resets = args[12]
    late = torch.cat((torch.zeros_like(resets[:1]), resets[:-1]))
    return stack(*args[:12], late, *args[13:])


def a_length_short(stack: Operator, *args: Any) -> Any:
    return stack(*args[:11], args[11] - args[11].sign(), *args[12:])


def states_late(stack: Operator, *args: Any) -> Any:
    *results, states = stack(*args)
    return (*results, states.roll(1, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_planted_into_a_stream_is_seen(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(Problem("LSTM", T=5, B=3, I=4, H=9, P=5, dtype=dtype, hx="given"))
    check(case)
    step = Stream.step
    monkeypatch.setattr(Stream, "step", lambda stream, x: step(stream, x) + 1e-7)
    with pytest.raises(AssertionError, match="other bits in parts"):
        check(case)


@pytest.mark.parametrize("lengths", [(5, 2, 3), (4, 0, 5)], ids=["packed", "by definition"])
@pytest.mark.parametrize("bug", [a_reset_late, a_length_short, states_late])
def test_what_is_planted_into_a_course_is_seen(
    bug: Operator, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem("LSTM", T=5, B=3, I=4, H=9, lengths="some", every=2)
    if bug is not a_length_short:
        problem = replace(problem, resets="dense", reset_state="rows", states=True)
    case = Case(problem, lengths)
    assert case.packs == (bug is a_length_short and all(lengths))
    check(case)
    operator = stack.stack
    monkeypatch.setattr(stack, "stack", lambda *args: bug(operator, *args))
    with pytest.raises(AssertionError):
        check(case)


def test_every_case_asked_for_goes_to_some_process() -> None:
    for count in (3, 2000, 100_000):
        parts = shares(count)
        assert sum(cases for _, cases in parts) == count
        assert max(cases for _, cases in parts) <= MOST
    assert {isa for isa, _ in shares(2000)} == set(_C.cpu_isas())

"""Bugs to plant into the CPU kernels and into what cuts their rows, each an expression of a source
and what takes its place. All are compiled into one binary, where a number says which of them acts:
so that many cost no more than one. tests/operators/test_planted_bugs.py holds the layers' check to
finding each.

Run as a program it tries them on the core problems and prints what became of each."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from fusedrnn import _C
from support.problems import CORE, Problem, check


class Bug(NamedTuple):
    file: str  # in csrc
    place: str  # text that stands there once, the expression between backticks
    wrong: str


FORWARD, ROWS, SEGMENTS, STATES = (
    *("cpu/forward.h", "model/rows.h"),
    *("ops/segments.cpp", "cpu/states.h"),
)

BUGS = {
    # Resets.
    "a reset one step late": Bug(
        *(SEGMENTS, "at = `s.begin + t + direction`;"),
        "std::max<int64_t>(s.begin + t + direction - 1, 0)",
    ),
    "in reverse a reset one step early": Bug(
        SEGMENTS, "&& `bits[at * B_ + s.row]`;", "bits[(at - direction) * B_ + s.row]"
    ),
    "a reset past a row's end": Bug(SEGMENTS, "all[n] = `at < ends_[s.row]`", "at < T_"),
    "after a reset every row has the first one's h": Bug(
        STATES, "all ? `all + r * a.reset_rows * a.problem.P`", "all"
    ),
    "after a reset every row has the first one's c": Bug(
        STATES, "all ? `all + r * a.reset_rows * a.problem.H`", "all"
    ),
    "gradients pass a reset": Bug(STATES, "if (`!is_cut(p, t, r)`) continue;", "true"),
    # Lengths.
    "a length one step short": Bug(
        *(SEGMENTS, "begin[b], `end - begin[b]`, first"),
        "end - begin[b] - (end - begin[b] > 1)",
    ),
    "a row's first step past its end is not zero": Bug(
        SEGMENTS, "if (`t >= ends_[b]`) rest", "t > ends_[b]"
    ),
    "h_n of the last step of the row after": Bug(
        ROWS, "t > 0 && `active(t) <= b`", "active(t) <= b + 1"
    ),
    # Gates that are made again, piece by piece.
    "a piece begins with c of one step later": Bug(
        *(FORWARD, "border = `pieces_.border_after(t)`;"),
        "pieces_.border_after(p_.reverse ? t + 1 : t - 1)",
    ),
    "every piece begins with the first one's c": Bug(
        FORWARD, "kept = `kept_c_ + pieces_.row(border) * width`;", "kept_c_"
    ),
    "no c before the first step of a piece": Bug(
        FORWARD, "copy_states(own, `crossing`, kept, keep.c", "int64_t(0)"
    ),
}

SWITCH = "fusedrnn_planted"
DECLARED = f'extern "C" __attribute__((visibility("default"))) int {SWITCH};\n'
DEFINED = f"{DECLARED}int {SWITCH} = 0;\n"


def plant_all(csrc: Path) -> None:
    """Into a copy of csrc. ValueError where the source no longer has a bug's place: then the bug
    has to follow the source, or to go with what it broke."""
    for number, (file, place, wrong) in enumerate(BUGS.values(), 1):
        before, right, after = place.split("`")
        text, old = (csrc / file).read_text(), place.replace("`", "")
        if text.count(old) != 1:
            raise ValueError(f"{old!r} stands {text.count(old)} times in csrc/{file}, not once")
        new = f"{before}({SWITCH} == {number} ? ({wrong}) : ({right})){after}"
        (csrc / file).write_text(text.replace(old, new))


# Those that lengths, resets or pieces reach; in float64, of which each digit has to be right.
PROBLEMS = [
    replace(p, dtype=torch.float64)
    for p in CORE
    if p.mode in ("LSTM", "GRU") and (p.resets != "none" or p.every)
]


def is_seen(problem: Problem) -> bool:
    try:
        check(problem)
    except AssertionError:
        return True
    return False


def main() -> None:
    torch.use_deterministic_algorithms(True)  # what is never written is nan
    acting = ctypes.c_int.in_dll(ctypes.CDLL(_C.__file__), SWITCH)
    for number, name in enumerate(("nothing", *BUGS)):
        acting.value = number
        print(f"{name}: {'seen' if any(map(is_seen, PROBLEMS)) else 'not seen'}", flush=True)


if __name__ == "__main__":
    main()

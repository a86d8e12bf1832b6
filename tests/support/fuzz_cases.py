"""The calls that the fuzzer draws, and the program that runs them: cases of one instruction set. It
shrinks what fails and says how many ran. A process killed by a case has left it in the file named
last; see test_fuzz.py, which starts these."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import fusedrnn
from support.fuzz import LAYOUTS, OUTPUTS, PACKED, Case, check
from support.guarded import BEGINNINGS, ENDS
from support.problems import MODES, Problem

# Where kernels change their mind: around whole vectors, and what divides by nothing.
PRIMES = [n for n in range(2, 300) if all(n % d for d in range(2, int(n**0.5) + 1))]
NEAR_POWERS = [2**k + i for k in range(2, 9) for i in (-1, 0, 1)]
SIZES = sorted({1, *PRIMES, *NEAR_POWERS, 300})
FORMS = ("batched", "batch_first", "unbatched", *PACKED)


def size(draw: st.DrawFn, most: int) -> int:
    most = max(min(most, 300), 1)
    known = [n for n in SIZES if n <= most]
    few = st.integers(1, min(most, 9))
    return draw(st.one_of(few, st.sampled_from(known), st.integers(1, most)))


def sizes(draw: st.DrawFn, form: str, layers: int, single: bool) -> tuple[int, int, int, int]:
    """T, B, I and H; `layers` counts directions, `single` is a cell's call."""
    # What a case may take: multiplications of a gate over all steps, and steps.
    work = draw(st.sampled_from((10**4,) * 3 + (10**5,) * 5 + (10**6,) * 3 + (10**7,)))
    steps = draw(st.sampled_from((12,) * 4 + (40,) * 5 + (120,) * 2 + (600,)))
    steps = max(steps // layers, 1)

    def width(work: int) -> tuple[int, int, int]:
        H = size(draw, int(work**0.5))
        if work >= 10**6 and draw(st.integers(0, 9)) == 9:
            H = draw(st.sampled_from((384, 511, 512, 513)))
        I = size(draw, work // H)  # noqa: E741
        return H, I, work // (H * max(H, I))

    def length(work: int) -> tuple[int, int, int]:
        T = 1 if single else size(draw, min(steps, work))
        B = 1 if form == "unbatched" else size(draw, work // T)
        return T, B, work // (T * B)

    if draw(st.booleans()):
        H, I, work = width(work)  # noqa: E741
        T, B, _ = length(work)
    else:
        T, B, work = length(work)
        H, I, _ = width(work)  # noqa: E741
    if form in ("batched", "batch_first") and not single:
        T, B = draw(st.sampled_from(((T, B),) * 30 + ((T, 0), (0, B))))
    return T, B, I, H


# Steps of all layers: what holds them is a loop in Python.
LONGEST = 40


def beyond_torch(draw: st.DrawFn, form: str, layers: int, T: int) -> dict[str, Any]:
    """What a Problem asks for that torch.nn does not have: every third asks for something."""
    asked: dict[str, Any] = {}
    if not draw(st.sampled_from((False, False, True))) or not 0 < T * layers <= LONGEST:
        return asked
    asked["every"] = draw(st.one_of(st.none(), st.integers(1, T + 1), st.just("auto")))
    asked["states"] = draw(st.sampled_from((False, True, "all")))
    if form not in PACKED:
        asked["lengths"] = draw(st.sampled_from(("none", "some")))
        asked["resets"] = draw(st.sampled_from(("none", "sparse", "dense", "all")))
        if asked["resets"] != "none":
            asked["reset_state"] = draw(st.sampled_from(("none", "one", "rows")))
    return asked


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly small, so that many run, with a tail of large ones; they shrink to plain calls."""
    mode = draw(st.sampled_from(MODES))
    call = draw(st.sampled_from(("module",) * 6 + ("functional", "cell")))
    dtype = draw(
        st.sampled_from((torch.float32,) * 4 + (torch.float64, torch.bfloat16, torch.float16))
    )
    single = call == "cell"
    L = 1 if single else draw(st.sampled_from((1, 1, 1, 2, 3)))
    bidirectional = not single and draw(st.booleans())
    form = "batched" if single else draw(st.sampled_from(FORMS))
    T, B, I, H = sizes(draw, form, L * (1 + bidirectional), single)  # noqa: E741
    P = size(draw, H - 1) if mode == "LSTM" and H > 1 and not single and draw(st.booleans()) else 0
    asked = {} if single else beyond_torch(draw, form, L * (1 + bidirectional), T)
    lengths: tuple[int, ...] = (1,)
    if form in PACKED or asked.get("lengths") == "some":
        least = 1 if form in PACKED else draw(st.integers(0, 1))
        length = st.integers(least, T)
        lengths = tuple(draw(st.lists(length, min_size=1, max_size=max(min(B, 8), 1))))
    dropout = draw(st.sampled_from((0.0,) * 5 + (0.4, 1.0))) if L > 1 else 0.0
    problem = Problem(
        mode,
        T,
        B,
        I,
        H,
        L,
        P,
        dtype,
        form,
        bidirectional,
        bias=draw(st.sampled_from((True, True, False))),
        dropout=dropout,
        hx=draw(st.sampled_from(("none", "given", "grad"))),
        **asked,
    )
    outputs = [name for name in OUTPUTS if name != "c_n" or mode == "LSTM"]
    if not problem.states:
        outputs.remove("states")
    layout = st.sampled_from(("plain",) * 5 + LAYOUTS)
    return Case(
        problem,
        lengths,
        call,
        x=draw(layout),
        hx="plain" if problem.hx == "none" else draw(layout),
        weights=draw(layout),
        slopes=draw(layout),
        course=draw(layout) if asked else "plain",
        x_grad=draw(st.booleans()),
        needs=tuple(draw(st.lists(st.booleans(), min_size=1, max_size=5))),
        used=tuple(draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True))),
        threads=draw(st.sampled_from((1, 1, 2, 2, 3, 5))),
        scale=draw(st.sampled_from((1.0, 1.0, 0.01, 30.0))),
        poison=draw(st.booleans()),
        guard=draw(st.sampled_from((ENDS, BEGINNINGS))),
        seed=draw(st.integers(0, 999)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--last", type=Path, required=True, help="file that holds the running case")
    options = parser.parse_args()
    ran = 0
    last = options.last.open("w")

    @seed(options.seed)
    @settings(
        max_examples=options.cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(cases())
    def fuzz(case: Case) -> None:
        nonlocal ran
        ran += 1
        last.seek(0)
        last.write(f"{case!r}\n")
        last.truncate()
        last.flush()
        check(case)

    try:
        fuzz()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    print(f"ran {ran} cases, {fusedrnn._C.cpu_isa()}")


if __name__ == "__main__":
    main()

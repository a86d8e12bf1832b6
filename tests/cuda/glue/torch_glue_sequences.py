"""Lengths, resets, reset states, c of every step and gates that are made again, by the CUDA half:
whole operators against the definition in float64 (fusedrnn/reference.py). Rows move as they do on a
GPU. Run by tests/cuda/test_cuda_glue.py as torch_glue_checks.py is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fusedrnn.reference
from support.theirs import GATES, MODES

GLUE = torch.ops.fusedrnn_glue
OPS: Any = torch.ops.fusedrnn
reference: Any = fusedrnn.reference
KERNELS = {"block": 40, "cluster": 150, "stepwise": 7}  # and an H that each can run
T, B, I = 7, 4, 3  # noqa: E741
LENGTHS = torch.tensor([5, 0, 7, 2])
RESETS = torch.tensor(
    [
        [1, 1, 0, 1],  # before the first step
        [0, 0, 1, 1],
        [0, 1, 1, 0],  # twice in a row; past the end of rows 1 and 3
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 1],  # at row 0's end
        [0, 0, 1, 0],
    ],
    dtype=torch.bool,
)


class Case(NamedTuple):
    mode: str
    H: int
    D: int = 2
    P: int = 0
    lengths: Tensor | None = None
    resets: Tensor | None = None
    reset_rows: int = 0  # of the reset states, B or 1; 0: there are none
    packed: bool = False
    given: bool = True
    every: int = 0

    @property
    def has_c(self) -> bool:
        return self.mode == "LSTM"


def drawn(c: Case) -> dict[str, Any]:
    """The operators' tensors by name, in float64."""
    generator = torch.Generator().manual_seed(7)

    def values(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    G, P = GATES[c.mode] * c.H, c.P or c.H
    shapes = [(G, I), (G, P), (G,), (G,)] + [(c.P, c.H)] * bool(c.P)
    # In pieces of 3 steps counted from the end, more rows would cross borders than are kept.
    rows = [4, 4, 1, 1, 1, 1, 1] if c.packed else []
    steps = (sum(rows),) if c.packed else (T, B)

    def states(rows: int) -> tuple[Tensor | None, Tensor | None]:
        h, cell = values(c.D, rows, P), values(c.D, rows, c.H)
        return h, cell if c.has_c else None

    hx, cx = states(B) if c.given else (None, None)
    reset_h, reset_c = states(c.reset_rows) if c.reset_rows else (None, None)
    dh_n, dc_n = states(B)
    return {
        "operands": [
            *(values(*steps, I), torch.tensor(rows) if c.packed else None, hx, cx),
            [values(*shape) / c.H**0.5 for _ in range(c.D) for shape in shapes],
        ],
        "course": [c.lengths, c.resets, reset_h, reset_c],
        "slopes": [values(*steps, c.D * P), dh_n, dc_n],
        "of_states": values(*steps, c.D * c.H) if c.has_c else None,
    }


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [cast(v, dtype) for v in value]
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_real else value


def held(name: str, ours: Tensor, exact: Tensor) -> None:
    scale = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
    bound = (1e-5 if ours.dtype == torch.float32 else 1e-12) * scale
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=bound, msg=name)


def check(c: Case, dtype: torch.dtype = torch.float32) -> None:
    values = drawn(c)
    operands, course = values["operands"], values["course"]
    flags = (c.mode, True)
    expected = reference.layer(*operands, *flags, *course)
    mine, my_course = cast(operands, dtype), cast(course, dtype)
    for train in (False, True):
        found = OPS.layer(*mine, *flags, train, *my_course, True, c.every)
        kept = found[3]
        for name, a, b in zip(
            ("output", "h_n", "c_n", "states"), (*found[:3], found[4]), expected, strict=True
        ):
            held(name, a, b)
        plain = OPS.layer(*mine, *flags, train, *my_course, False, c.every)
        assert all(map(torch.equal, plain[:3], found[:3])), "states change the others"

    slopes = values["slopes"]
    wanted = reference.layer_backward(*slopes, *operands, *flags, values["of_states"], *course)
    needs = [g is not None for g in wanted]
    before = kept.clone()
    gradients = OPS.layer_backward(
        *cast(slopes, dtype),
        *mine,
        *(found[0], kept, *flags, needs, cast(values["of_states"], dtype)),
        *my_course,
        c.every,
    )
    assert torch.equal(before, kept) or not kept.isfinite().all(), "backward changed the reserve"
    exact = [g for g in wanted if g is not None]
    for i, (a, b) in enumerate(zip(gradients, exact, strict=True)):
        held(f"gradient {i} of {needs}", a, b)


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """No test leaves work behind that the main stream has not waited for."""
    GLUE.settle()
    yield
    assert GLUE.settle() == ""


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of kernel that a test is run by, forced."""
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", request.param)
    return str(request.param)


COURSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "reset states": {"resets": RESETS, "reset_rows": B},
    "one reset state, lengths": {"lengths": LENGTHS, "resets": RESETS, "reset_rows": 1},
    "first resets alone": {"resets": RESETS & (torch.arange(T) == 0)[:, None], "reset_rows": B},
    "no step at all": {"lengths": torch.zeros_like(LENGTHS)},
    "packed": {"packed": True},
}


@pytest.mark.parametrize("kernel", ["block", "stepwise"], indirect=True)
@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("mode", MODES)
def test_sequences_are_as_defined(mode: str, course: str, kernel: str) -> None:
    check(Case(mode, KERNELS[kernel], **COURSES[course]))


@pytest.mark.parametrize("kernel", ["cluster"], indirect=True)
@pytest.mark.parametrize("every", [0, 3])
@pytest.mark.parametrize("course", ["one reset state, lengths", "packed"])
def test_sequences_by_clusters_are_as_defined(course: str, every: int, kernel: str) -> None:
    check(Case("LSTM", KERNELS[kernel], every=every, **COURSES[course]))


@pytest.mark.parametrize("kernel", ["block", "stepwise"], indirect=True)
@pytest.mark.parametrize("course", COURSES)
def test_no_state_and_one_direction_are_as_defined(course: str, kernel: str) -> None:
    check(Case("LSTM", KERNELS[kernel], D=1, given=False, **COURSES[course]))


@pytest.mark.parametrize("P", [0, 2])
@pytest.mark.parametrize("course", COURSES)
def test_float64_and_projections_are_as_defined(course: str, P: int) -> None:
    check(Case("LSTM", 6, P=P, **COURSES[course]), torch.float64)


@pytest.mark.parametrize("kernel", ["block", "stepwise"], indirect=True)
@pytest.mark.parametrize("every", [1, 3, 9])
@pytest.mark.parametrize("course", ["plain", "one reset state, lengths", "packed"])
@pytest.mark.parametrize("mode", MODES)
def test_gates_made_again_are_as_defined(mode: str, course: str, every: int, kernel: str) -> None:
    check(Case(mode, KERNELS[kernel], every=every, **COURSES[course]))


@pytest.mark.parametrize("P", [0, 2])
@pytest.mark.parametrize("course", COURSES)
def test_gates_of_float64_and_projections_are_made_again(course: str, P: int) -> None:
    for every, given in ((2, True), (3, False)):
        check(Case("LSTM", 6, P=P, given=given, every=every, **COURSES[course]), torch.float64)


@pytest.mark.parametrize("chunk", ["1", "3"])
@pytest.mark.parametrize("course", ["plain", "one reset state, lengths"])
def test_states_of_sequences_in_pieces_are_as_defined(
    course: str, chunk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_CUDA_CHUNK", chunk)
    check(Case("LSTM", 40, **COURSES[course]))


def test_sums_of_reset_states_come_out_the_same_every_time() -> None:
    torch.manual_seed(3)
    weights = [torch.randn(s) for s in ((12, I), (12, 3), (12,), (12,))]
    x, reset = torch.randn(T, B, I), torch.randn(1, 1, 3)
    rows = (None, torch.ones(T, B, dtype=torch.bool), reset, reset)
    y, _, _, reserve, _ = OPS.layer(x, None, None, None, weights, "LSTM", True, True, *rows)
    slopes = (torch.randn_like(y), None, None, x, None, None, None, weights, y, reserve)
    needs = [False] * 7 + [True, True]
    first, second = (
        OPS.layer_backward(*slopes, "LSTM", True, needs, None, *rows) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))

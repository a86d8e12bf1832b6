"""Kernels that fail on purpose (faults.cpp), and what comes of it. Run by
tests/cuda/test_cuda_glue.py, with the plugin beside this file; not collected otherwise. What is
taken out stays out for the process, so that each test has a kernel of its own."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn import ops
from fusedrnn.plan import GPUS
from support.planning import OURS, problem

Told = Callable[[], list[str]]

GLUE = torch.ops.fusedrnn_glue
B = 3


@pytest.fixture(autouse=True)
def _choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUSEDRNN_CUDA_KERNEL", "FUSEDRNN_CUDA_TILE", "FUSEDRNN_HOST_FAULT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Iterator[Told]:
    """The warnings since it was last asked. Torch makes Python's of them where it goes back, and
    else prints them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def since() -> list[str]:
            printed = re.findall(r"fusedrnn: on cuda:.*", capfd.readouterr().err)
            found = [str(warning.message) for warning in caught]
            caught.clear()
            return printed + [said for said in found if "fusedrnn: on cuda:" in said]

        yield since


def runs(mode: str, H: int, backward: bool, tile: int) -> bool:
    try:
        planned(mode, H, backward, ops.Restriction.to_tile(tile))
    except ValueError:
        return False
    return True


def planned(mode: str, H: int, backward: bool, allowed: ops.Restriction = OURS) -> int:
    """The tile of a plan."""
    name = "RNN_TANH" if mode == "RNN" else mode
    plan = ops.cuda_plan(problem(name, 4, B, H, I=5), GPUS["sm_90"], allowed, backward)
    return int(plan["tile"])


def bits(mask: int) -> list[int]:
    return [tile for tile in range(64) if mask >> tile & 1]


class Case:
    """A layer, torch.nn's beside it, and the tile that the plan takes for a pass."""

    def __init__(self, mode: str, H: int, backward: bool = False) -> None:
        self.ours, self.exact = getattr(fusedrnn, mode)(5, H), getattr(nn, mode)(5, H)
        self.exact.load_state_dict(self.ours.state_dict())
        self.backward = backward
        self.x = torch.randn(4, B, 5)
        self.tile = planned(mode, H, backward)
        assert self.tile >= 0

    def results(self, module: nn.Module) -> list[Tensor]:
        output, states = module(self.x)
        if not self.backward:
            return [output, *(states if isinstance(states, tuple) else [states])]
        return list(torch.autograd.grad(output.square().sum(), [*module.parameters()]))

    def is_right(self) -> bool:
        found, expected = self.results(self.ours), self.results(self.exact)
        return all(torch.allclose(a, b, 1e-3, 1e-4) for a, b in zip(found, expected, strict=True))

    def is_out(self) -> bool:
        return bool(GLUE.excluded(self.backward) >> self.tile & 1)

    def fault(self, kind: str) -> tuple[str, str]:
        """The environment by which the tile fails in this pass."""
        pass_ = "backward" if self.backward else "forward"
        return "FUSEDRNN_HOST_FAULT", f"{kind}:{self.tile}:{pass_}"


@pytest.mark.parametrize(
    ("kind", "mode", "H", "backward", "reason"),
    [
        ("wrong", "LSTM", 32, False, r"computes something else .* apart"),
        ("wrong", "LSTM", 60, True, r"computes something else .* apart"),
        ("nan", "GRU", 30, False, r"computes something else .* its results are not finite"),
        ("nan", "GRU", 64, True, r"computes something else .* its results are not finite"),
        ("refuse", "RNN", 50, False, "did not start: invalid configuration argument"),
        ("refuse", "RNN", 128, True, "did not start: invalid configuration argument"),
        ("wrong", "LSTM", 256, False, "computes something else"),
    ],
)
def test_a_kernel_that_fails_is_replaced_with_one_warning(
    kind: str,
    mode: str,
    H: int,
    backward: bool,
    reason: str,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(mode, H, backward)
    monkeypatch.setenv(*case.fault(kind))
    assert case.is_right()
    (warning,) = told()
    kernel = "cluster" if H > 128 else "block"
    name = rf"on cuda:0 the {kernel} kernel {case.tile} \({mode}.*\)"
    assert re.search(rf"{name} {reason}.*; the \w+ kernel .*serves instead", warning), warning
    assert case.is_out()
    assert case.is_right()
    assert told() == []


@pytest.mark.parametrize("backward", [False, True])
def test_a_refused_launch_is_replaced_where_nothing_was_checked(
    backward: bool, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("GRU", 96, backward)
    monkeypatch.setenv("FUSEDRNN_CUDA_CHECK", "0")
    monkeypatch.setenv(*case.fault("refuse"))
    assert case.is_right()
    (warning,) = told()
    assert re.search(r"did not start: invalid configuration.* serves instead", warning)
    assert case.is_out()
    assert case.is_right()
    assert told() == []


def test_where_no_other_kernel_is_allowed_the_error_says_which_failed(
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("RNN", 256)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "block")
    monkeypatch.setenv("FUSEDRNN_HOST_FAULT", " ".join(f"refuse:{i}" for i in range(64)))
    with pytest.raises(ValueError, match=r"(?s)none can run RNN_TANH forward.*it failed on this"):
        case.is_right()
    assert all("no other is allowed" in warning for warning in told())


def test_a_lost_device_is_said_with_the_kernel_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case("RNN", 300)
    monkeypatch.setenv(*case.fault("trap"))
    reason = rf"kernel {case.tile} \(RNN.* failed on cuda:0 when it was checked.*launch failure\n"
    with pytest.raises(RuntimeError, match=rf"{reason}.*fusedrnn tune.*KERNEL=stepwise"):
        case.is_right()


def test_nothing_is_checked_under_capture_but_later(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("LSTM", 96)
    monkeypatch.setenv(*case.fault("wrong"))
    monkeypatch.setenv("FUSEDRNN_HOST_CAPTURES", "1")
    case.is_right()
    assert not case.is_out()
    assert told() == []
    monkeypatch.delenv("FUSEDRNN_HOST_CAPTURES")
    assert case.is_right()
    assert len(told()) == 1


def test_the_check_can_be_switched_off(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("LSTM", 512)
    monkeypatch.setenv(*case.fault("wrong"))
    monkeypatch.setenv("FUSEDRNN_CUDA_CHECK", "0")
    case.is_right()
    assert not case.is_out()
    monkeypatch.setenv("FUSEDRNN_CUDA_CHECK", "no")
    with pytest.raises(ValueError, match="FUSEDRNN_CUDA_CHECK must be 0 or 1, got no"):
        case.is_right()
    monkeypatch.setenv("FUSEDRNN_CUDA_CHECK", "1")
    assert case.is_right()
    assert len(told()) == 1


def test_a_forced_tile_is_neither_checked_nor_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("GRU", 128)
    monkeypatch.setenv("FUSEDRNN_CUDA_TILE", str(case.tile))
    monkeypatch.setenv(*case.fault("wrong"))
    case.is_right()
    monkeypatch.setenv(*case.fault("refuse"))
    with pytest.raises(RuntimeError, match="a kernel did not start, invalid configuration"):
        case.is_right()
    assert not case.is_out()


def test_threads_that_meet_a_wrong_kernel_at_once_get_one_warning_and_right_results(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case("GRU", 250) for _ in range(4)]
    monkeypatch.setenv(*cases[0].fault("wrong"))
    right: list[bool] = []
    start = threading.Barrier(len(cases))

    def run(case: Case) -> None:
        start.wait()
        right.append(case.is_right())

    threads = [threading.Thread(target=run, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * len(cases)
    assert len(told()) == 1


def test_the_check_draws_no_random_numbers() -> None:
    case = Case("GRU", 192)
    before = torch.get_rng_state()
    assert case.is_right()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN"])
def test_every_tile_passes_its_check(
    mode: str, backward: bool, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes one out after the other, so that the plan meets the next one for the first time."""
    module = getattr(fusedrnn, mode)(5, 20)
    for tile in bits(GLUE.checked(backward)):  # by an earlier test, as what served instead
        GLUE.exclude(backward, tile)
    for kernel in ("block", "cluster"):
        while True:
            before = GLUE.checked(backward)
            monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "stepwise" if backward else kernel)
            try:
                output = module(torch.randn(4, B, 5))[0]
                monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", kernel)
                if backward:
                    output.sum().backward()
            except ValueError:  # none is left
                break
            (tile,) = bits(GLUE.checked(backward) & ~before)
            GLUE.exclude(backward, tile)
    made = [tile for tile in range(64) if runs(mode, 20, backward, tile)]
    assert made
    assert set(made) <= {*bits(GLUE.checked(backward)), *bits(GLUE.excluded(backward))}
    assert told() == []

"""What a device has shown goes before what is estimated of it: measured steps, and tiles that
failed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from fusedrnn import _C
from fusedrnn.plan import GPUS
from support.planning import BATCHES, OURS, SIZES, TORCH, plan, problem


def test_classes_are_named_by_their_largest_member() -> None:
    assert _C.cuda_class(1, 1) == (32, 1)
    assert _C.cuda_class(100, 65) == (128, 128)
    assert _C.cuda_class(129, 64) == (160, 64)
    assert _C.cuda_class(1025, 1000) == (2048, 1024)
    for H, B in product(SIZES, BATCHES):
        largest = _C.cuda_class(H, B)
        assert largest[0] >= H
        assert largest[1] >= B
        assert _C.cuda_class(*largest) == largest


ENTRY = {
    "mode": "LSTM",
    "backward": False,
    "training": True,
    "tf32": True,
    "H": 128,
    "B": 64,
    "D": 1,
    "L": 1,
    "kernel": "stepwise",
    "tile": -1,
    "step_us": 0.5,
}


@pytest.fixture
def index() -> Iterator[int]:
    """Of a device that nobody has, with nothing measured before and after."""
    _C.set_measured(77, [])
    yield 77
    _C.set_measured(77, [])


def test_what_was_measured_comes_before_what_is_estimated(index: int) -> None:
    free = plan(index=index)
    assert not free["measured"]
    row = free["tile"]
    slow = ENTRY | {"kernel": "block", "tile": row, "step_us": 8.5}
    _C.set_measured(index, [slow])
    found = plan(index=index, B=50, H=100)  # of the same class
    assert (found["tile"], found["step_us"], found["measured"]) == (row, 8.5, True)
    assert dict(found["rejected"])["cuDNN"].endswith("us a step, while others were measured")
    _C.set_measured(index, [slow, ENTRY])
    found = plan(index=index)
    assert (found["kernel"], found["step_us"], found["measured"]) == ("stepwise", 0.5, True)
    told = dict(found["rejected"])
    assert told["block LSTM H<=128, 1 row"] == "measured 8.50 us a step, the cheapest 0.50"
    # Where nothing that was measured may run, estimates serve.
    found = plan(index=index, allowed=TORCH)
    assert (found["kernel"], found["measured"]) == ("torch", False)


@pytest.mark.parametrize(
    "options",
    [
        {"B": 65},
        {"H": 129},
        {"D": 2},
        {"mode": "GRU"},
        {"backward": True},
        {"training": False},
        {"tf32": False},
        {"P": 8},
        {"dtype": "float64"},
        {"index": 78},
    ],
    ids=str,
)
def test_a_measurement_serves_its_class_alone(index: int, options: dict[str, Any]) -> None:
    _C.set_measured(index, [ENTRY])
    assert plan(index=index)["measured"]
    asked: dict[str, Any] = {"index": index} | options
    assert not plan(**asked)["measured"]
    assert plan(**asked) == plan(**asked | {"index": -1})


def test_both_nonlinearities_share_measurements_and_ours_any_number_of_layers(index: int) -> None:
    theirs = ENTRY | {"kernel": "torch", "L": 2, "step_us": 0.25}
    _C.set_measured(index, [entry | {"mode": "RNN_RELU"} for entry in (ENTRY, theirs)])
    for mode in ("RNN_TANH", "RNN_RELU"):
        assert plan(mode=mode, index=index)["kernel"] == "stepwise"
        for L in (2, 3):
            assert plan(mode=mode, index=index, L=L)["kernel"] == "torch"
            ours = plan(mode=mode, index=index, L=L, allowed=OURS)
            assert (ours["kernel"], ours["measured"]) == ("stepwise", True)
    # One layer's own figure comes before a stack's, in either order.
    stack = ENTRY | {"mode": "RNN_TANH", "L": 2, "step_us": 9}
    layer = stack | {"L": 1, "step_us": 3}
    for entries in ([stack, layer], [layer, stack]):
        _C.set_measured(index, entries)
        found = [plan(mode="RNN_TANH", index=index, L=L)["step_us"] for L in (1, 2)]
        assert found == [3, 3]


def hands(index: int) -> bool:
    choice = _C.cuda_choice(problem("LSTM", 100, 64, 128), GPUS["sm_90"], index=index)
    return bool(choice["by_torch"])


def test_a_stack_goes_the_way_that_was_measured(index: int) -> None:
    ours = [ENTRY | {"backward": back, "step_us": 50} for back in (False, True)]
    theirs = [entry | {"kernel": "torch", "step_us": 40} for entry in ours]
    assert not hands(index)
    _C.set_measured(index, theirs)
    assert hands(index)
    _C.set_measured(index, ours)
    assert not hands(index)
    _C.set_measured(index, ours + theirs)
    assert hands(index)
    _C.set_measured(index, [entry | {"step_us": 30} for entry in ours] + theirs)
    assert not hands(index)
    _C.set_measured(index, theirs[:1])  # one pass alone is no comparison
    assert not hands(index)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"B": 65}, ValueError),
        ({"H": 100}, ValueError),
        ({"L": 3}, ValueError),
        ({"D": 3}, ValueError),
        ({"tile": 0}, ValueError),
        ({"kernel": "block"}, ValueError),
        ({"kernel": "block", "tile": 64}, ValueError),
        ({"kernel": "fast"}, ValueError),
        ({"step_us": 0}, ValueError),
        ({"step_us": float("nan")}, ValueError),
        ({"step_us": "1"}, TypeError),
    ],
    ids=str,
)
def test_what_is_no_measurement_is_refused(
    index: int, change: dict[str, Any], error: type[Exception]
) -> None:
    _C.set_measured(index, [ENTRY])
    with pytest.raises(error, match="fusedrnn: "):
        _C.set_measured(index, [ENTRY | change])
    assert _C.experience(index)["measured"] == [ENTRY]


def test_a_tile_that_failed_is_taken_out_for_its_pass_and_device() -> None:
    index = 76  # of a device that nobody has; what is taken out stays out
    before = plan(index=index)
    _C.exclude_tile(index, False, before["tile"])
    assert before["tile"] in _C.experience(index)["excluded"][0]
    after = plan(index=index)
    assert after["tile"] != before["tile"]
    assert "was taken out: it failed on this device" in dict(after["rejected"]).values()
    assert plan(index=index, backward=True) == plan(backward=True)
    assert plan(index=75) == plan()
    for bad in (-1, 64):
        with pytest.raises(ValueError, match="tile must be a row"):
            _C.exclude_tile(index, False, bad)
    for wrong in (lambda: _C.experience(-1), lambda: _C.set_measured(-1, [])):
        with pytest.raises(ValueError, match="number is not negative"):
            wrong()

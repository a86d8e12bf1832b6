"""The plan for a GPU, held to the limits of every architecture that kernels are built for. It is a
pure function of the problem and those limits, so no GPU is asked, and none is needed."""

from __future__ import annotations

from itertools import pairwise, product
from math import log2
from typing import Any

import pytest

from fusedrnn import _C
from fusedrnn._C import Restriction
from fusedrnn._ops.cells import CELLS
from fusedrnn.plan import GPUS
from support.planning import (
    ANY,
    BATCHES,
    BLOCK,
    CLUSTER,
    MODES,
    OURS,
    SIZES,
    STEPWISE,
    TORCH,
    only,
    plan,
    problem,
    reasons,
)
from support.tiles import Kernel


def test_each_row_of_the_table_can_be_built_and_started(tiles: list[Kernel]) -> None:
    for tile in tiles:
        assert tile.threads % 32 == 0, tile
        assert tile.threads <= 1024, tile
        # Registers are given to whole warps, of which each quarter of a multiprocessor takes some.
        assert tile.registers * -(-tile.threads // 128) * 128 <= 65536, tile
        assert tile.registers % 8 == 0 or tile.registers == 255, tile
        assert 4 * tile.held < tile.registers, tile
        assert tile.shared_bytes <= 227 * 1024, tile
        assert tile.lanes in (1, 2, 4, 8, 16, 32), tile
        assert tile.cluster in (1, 2, 4, 8, 16), tile
        assert tile.rows in (1, 2, 4), tile
        assert tile.units * tile.cluster == tile.hidden, tile
        assert tile.units % tile.units_of_thread == 0, tile
        assert tile.hidden % 8 == 0, tile
    assert {tile.cell for tile in tiles} == {"LSTM", "GRU", "RNN", "MGU"}


def test_each_row_of_the_table_holds_all_weights_on_chip(tiles: list[Kernel]) -> None:
    for tile in tiles:
        weights = tile.gates * tile.hidden * tile.units
        assert 4 * tile.quads * tile.threads >= weights, tile
        assert min(tile.held, tile.quads) + tile.shared_quads == tile.quads, tile


def test_a_cluster_going_back_has_a_thread_for_each_cell(tiles: list[Kernel]) -> None:
    cut_up = [tile for tile in tiles if tile.cluster > 1 and tile.backward]
    assert cut_up
    for tile in cut_up:
        assert tile.units * tile.rows <= tile.threads, tile


def test_no_row_of_the_table_stands_twice(tiles: list[Kernel]) -> None:
    keys = ["backward", "cell", "hidden", "cluster", "rows"]
    assert len({tuple(getattr(tile, key) for key in keys) for tile in tiles}) == len(tiles)


@pytest.mark.parametrize("gpu", GPUS)
def test_no_plan_goes_beyond_the_limits_of_its_device(gpu: str, tiles: list[Kernel]) -> None:
    device = GPUS[gpu]
    table = {(tile.row, tile.backward): tile for tile in tiles}
    kernels = set()
    for mode, H, B, backward, D in product(MODES, SIZES, BATCHES, (False, True), (1, 2)):
        found = plan(gpu, mode, B=B, H=H, backward=backward, D=D)
        kernels.add(found["kernel"])
        assert found["step_us"] > 0
        if found["kernel"] in ("stepwise", "torch"):
            assert (found["tile"], found["blocks"], found["threads"]) == (-1, 0, 0)
            continue
        tile = table[found["tile"], backward]
        assert tile.gates == CELLS[mode].gates
        for key in ("hidden", "cluster", "rows", "threads", "registers", "shared_bytes"):
            assert found[key] == getattr(tile, key)
        assert found["hidden"] >= H
        assert found["shared_bytes"] <= device["shared_bytes"]
        assert found["blocks"] == -(-B // found["rows"]) * found["cluster"]
        assert (found["kernel"] == "cluster") == (found["cluster"] > 1)
        if found["cluster"] > 1:
            assert device["sm"] in (90, 100)
            assert device["clusters"][int(log2(found["cluster"]))] > 0
    assert {"block", "torch"} <= kernels
    assert ("cluster" in kernels) == (gpu in ("sm_90", "sm_100"))


PERSISTENT = {"block", "cluster"}
# The 64 KiB of sm_75 are not enough for what the registers leave over, going back.
TIGHT = {"sm_75": {"block", "torch"}, "": {"block"}}
CASES = [  # mode, T, B, H, by architecture what may be taken; the rest of them: the last set
    ("LSTM", 50, 64, 128, TIGHT),
    ("LSTM", 200, 64, 128, TIGHT),
    ("GRU", 200, 64, 128, {"": {"block"}}),
    ("RNN_TANH", 200, 64, 128, {"": {"block"}}),
    ("LSTM", 35, 32, 256, {"sm_90": {"cluster"}, "sm_100": {"cluster"}, "": {"torch"}}),
    ("GRU", 35, 32, 256, {"sm_90": {"cluster"}, "sm_100": {"cluster"}, "": {"torch"}}),
    ("RNN_RELU", 35, 32, 256, {"sm_90": PERSISTENT, "sm_100": PERSISTENT} | TIGHT),
    ("LSTM", 100, 64, 160, {"sm_90": {"cluster"}, "sm_100": {"cluster"}, "": {"torch"}}),
    ("LSTM", 100, 64, 192, {"sm_90": {"cluster"}, "sm_100": {"cluster"}, "": {"torch"}}),
    ("LSTM", 100, 64, 512, {"sm_90": {"cluster"}, "sm_100": {"cluster"}, "": {"torch"}}),
    ("LSTM", 100, 64, 1024, {"": {"torch"}}),
    ("GRU", 100, 64, 37, {"": {"block"}}),
    ("LSTM", 100, 1, 1, {"": {"block"}}),
    ("GRU", 100, 1, 100, {"": {"block"}}),
    ("RNN_TANH", 100, 3, 150, {"": {"block"}}),
    ("LSTM", 100, 1, 200, {"sm_90": {"cluster"}, "sm_100": {"cluster"}, "": {"torch"}}),
]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(
    ("mode", "T", "B", "H", "expected"), CASES, ids=lambda x: "" if isinstance(x, dict) else str(x)
)
def test_known_shapes_run_on_the_kernel_made_for_them(
    mode: str, T: int, B: int, H: int, expected: dict[str, set[str]], gpu: str, backward: bool
) -> None:
    found = plan(gpu, mode, T, B, H, backward=backward)
    assert found["kernel"] in expected.get(gpu, expected[""]), found


@pytest.mark.parametrize("gpu", GPUS)
def test_packed_rows_run_on_persistent_kernels_too(gpu: str) -> None:
    assert plan(gpu, packed=True)["kernel"] == "block"
    # cuDNN's own persistent kernel does not take them.
    padded, packed = (plan(gpu, packed=p, allowed=TORCH)["step_us"] for p in (False, True))
    assert packed > padded


@pytest.mark.parametrize("gpu", GPUS)
def test_float64_and_projections_are_left_to_the_paths_that_can(gpu: str) -> None:
    double = reasons(gpu=gpu, dtype="float64")
    assert double["persistent LSTM"] == "computes in float32, the input is float64"
    projected = reasons(gpu=gpu, P=32)
    assert projected["persistent LSTM"] == "h is not projected in it, P = 32"
    for options in ({"dtype": "float64"}, {"P": 32}):
        assert plan(gpu, **options, allowed=OURS)["kernel"] == "stepwise"
    single = plan(gpu, H=1024, B=1024, allowed=STEPWISE, tf32=False)["step_us"]
    double_us = plan(gpu, H=1024, B=1024, dtype="float64", allowed=STEPWISE)["step_us"]
    full_rate = gpu in ("sm_80", "sm_90", "sm_100")
    assert 1.5 * single < double_us < 3 * single if full_rate else double_us > 20 * single


def test_more_rows_than_a_persistent_kernel_counts_are_left_to_the_paths_that_can() -> None:
    assert plan(T=2**20, B=2**10, H=16, allowed=BLOCK)["kernel"] == "block"
    told = reasons(T=2**21, B=2**10, H=16)
    persistent = [why for name, why in told.items() if name.startswith(("block", "cluster"))]
    assert persistent
    assert set(persistent) == {"counts rows in 32 bits, T*B = 2.15e+09"}


def test_cudnn_is_not_taken_where_it_would_refuse() -> None:
    for sizes in ({"T": 65_536}, {"B": 65_536}):
        assert reasons(H=1024, **sizes)["cuDNN"] == "takes at most 65535 steps and rows"
    twice = "cannot be differentiated twice, as float64 is"
    assert reasons(H=1024, dtype="float64")["cuDNN"] == twice
    # Told to, it is.
    assert plan(H=1024, dtype="float64", allowed=TORCH)["kernel"] == "torch"


@pytest.mark.parametrize(
    ("dtype", "T", "training", "expected"),
    [
        ("float32", 100, True, True),
        ("float32", 65_536, True, False),
        ("float16", 65_535, True, True),
        ("float16", 65_536, True, False),
        ("float64", 100, True, False),
        ("float64", 100, False, True),
    ],
)
def test_a_stack_goes_to_cudnn_only_where_that_takes_it(
    dtype: str, T: int, training: bool, expected: bool
) -> None:
    asked = problem("LSTM", T, 64, 1024, dtype=dtype, training=training)
    assert _C.cuda_choice(asked, GPUS["sm_90"])["by_torch"] is expected


def test_a_stack_goes_the_way_of_its_top_layer() -> None:
    found = set()
    for gpu, H, training in product(GPUS, (64, 192, 256, 512), (False, True)):
        asked = problem("LSTM", 100, 64, H, L=2, training=training)
        of_top, of_layer = (
            _C.cuda_choice(asked | more, GPUS[gpu]) for more in ({}, {"I": 1, "top_I": H})
        )
        assert of_layer["by_torch"] is of_top["by_torch"]
        assert (of_layer["forward"]["kernel"] == "torch") is of_top["by_torch"]
        found.add(of_top["by_torch"])
    assert found == {False, True}


def test_each_candidate_is_either_taken_or_named_with_its_reason(
    tiles: list[Kernel],
) -> None:
    for gpu, H, backward in product(GPUS, (1, 100, 128, 200, 512), (False, True)):
        options: dict[str, Any] = {"gpu": gpu, "H": H, "backward": backward}
        candidates = [t for t in tiles if t.gates == 4 and t.hidden >= H and t.backward]
        assert len(reasons(**options)) == len(candidates) + 2 - 1
        assert all(reasons(**options).values())


def test_reasons_say_what_a_device_lacks(tiles: list[Kernel]) -> None:
    wanted = ("LSTM", 128, 4, False)
    (tile,) = [t for t in tiles if (t.mode, t.hidden, t.rows, t.backward) == wanted]
    for gpu, kib in [("sm_75", 64), ("sm_86", 99), ("sm_120", 99)]:
        assert reasons(gpu=gpu)["block LSTM H<=128, 4 rows"] == (
            f"needs {tile.shared_bytes / 1024:.1f} KiB of shared memory a block, "
            f"the device has {kib}.0"
        )
    cluster = "cluster LSTM H<=256, 4 blocks, 1 row"
    for gpu, version in [("sm_75", "7.5"), ("sm_89", "8.9"), ("sm_120", "12.0")]:
        assert reasons(gpu=gpu)[cluster] == (
            f"needs the clusters of compute capability 9.0 or 10.0, the device has {version}"
        )
    small = GPUS["sm_90"] | {"clusters": [132, 66, 32, 16, 0]}
    why = reasons(gpu=small, H=512)["cluster LSTM H<=512, 16 blocks, 1 row"]
    assert why == "the device runs no cluster of 16 blocks"
    assert plan(small, H=512)["kernel"] == "torch"
    old = GPUS["sm_80"] | {"sm": 70}
    why = reasons(gpu=old)["block LSTM H<=128, 1 row"]
    assert why == "needs compute capability 7.5, the device has 7.0"
    why = reasons(H=513)["persistent LSTM"]
    assert why == "made for H <= 512, not 513"


def test_reasons_of_what_costs_more_compare_estimates() -> None:
    found = plan()
    rejected = dict(found["rejected"])
    for name in ("block LSTM H<=128, 2 rows", "stepwise", "cuDNN"):
        told = rejected[name].removeprefix("estimated ").split(" us a step, the cheapest ")
        estimate, cheapest = map(float, told)
        assert cheapest == pytest.approx(found["step_us"], abs=0.006)
        assert estimate >= cheapest
    forced = plan(allowed=STEPWISE)
    assert float(rejected["stepwise"].split()[1]) == pytest.approx(forced["step_us"], abs=0.006)


@pytest.mark.parametrize("gpu", GPUS)
def test_more_rows_or_steps_never_cost_less(gpu: str) -> None:
    for mode, H, backward in product(MODES, (1, 64, 128, 160, 256, 512, 1024), (False, True)):
        options: dict[str, Any] = {"mode": mode, "H": H, "backward": backward}
        for allowed in (ANY, STEPWISE, TORCH) if CELLS[mode].has_torch else (ANY, STEPWISE):
            by_rows = [plan(gpu, B=B, allowed=allowed, **options)["step_us"] for B in BATCHES]
            # A block is kept until a cluster costs 15 % less, and ours until cuDNN costs less.
            least = 0.85 if allowed == ANY else 1
            assert all(least * a <= b for a, b in pairwise(by_rows)), (options, by_rows)
            steps = [1, 2, 3, 10, 35, 100, 1000, 70000]
            by_steps = [T * plan(gpu, T=T, allowed=allowed, **options)["step_us"] for T in steps]
            assert all(a < b for a, b in pairwise(by_steps)), (options, by_steps)


def test_rows_share_a_block_once_the_multiprocessors_are_taken() -> None:
    assert [plan(B=B)["rows"] for B in (1, 64, 132, 264, 1024)] == [1, 1, 1, 2, 4]
    assert plan(B=132)["step_us"] < plan(B=133)["step_us"]


def test_both_directions_run_side_by_side_while_there_is_room() -> None:
    one, two = (plan(D=D)["recurrence_us"] for D in (1, 2))
    assert one < two < 1.1 * one  # the weights of twice the blocks are loaded once
    assert plan(B=132, D=2)["recurrence_us"] > 1.3 * plan(B=132)["recurrence_us"]
    stepwise = [plan(D=D, allowed=STEPWISE)["step_us"] for D in (1, 2)]
    assert stepwise[1] == pytest.approx(2 * stepwise[0])


def test_fewer_clusters_at_once_cost_more() -> None:
    few = GPUS["sm_90"] | {"clusters": [132, 30, 14, 6, 2]}
    for H in (160, 192, 256, 512):
        full, scarce = (plan(gpu, H=H, allowed=CLUSTER)["step_us"] for gpu in ("sm_90", few))
        assert scarce > full


def test_one_step_does_not_pay_for_weights_kept_on_chip() -> None:
    assert plan(T=1, B=1024, allowed=OURS)["kernel"] == "stepwise"
    assert plan(T=10, B=1024, allowed=OURS)["kernel"] == "block"


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(
    ("kernel", "allowed"), [("block", BLOCK), ("stepwise", STEPWISE), ("torch", TORCH)], ids=str
)
def test_a_kernel_that_alone_is_allowed_is_taken(
    gpu: str, kernel: str, allowed: Restriction
) -> None:
    for backward, B in product((False, True), (1, 1024)):
        found = plan(gpu, B=B, H=100, mode="GRU", backward=backward, allowed=allowed)
        assert found["kernel"] == kernel
        others = {why for name, why in found["rejected"] if not name.startswith(kernel)}
        assert "not among the kernels allowed" in others


def test_a_cluster_is_taken_when_told_where_there_are_clusters() -> None:
    assert plan(H=129, allowed=CLUSTER)["hidden"] == 160
    assert plan("sm_100", H=500, allowed=CLUSTER)["hidden"] == 512


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"allowed": BLOCK, "H": 129}, "cluster LSTM H<=160, 2 blocks, 1 row: not among"),
        ({"allowed": CLUSTER, "gpu": "sm_80"}, "needs the clusters of compute capability 9.0"),
        ({"allowed": BLOCK, "P": 8}, "h is not projected in it, P = 8"),
        ({"allowed": CLUSTER, "dtype": "float64"}, "computes in float32"),
        ({"allowed": only()}, "stepwise: not among the kernels allowed"),
    ],
    ids=str,
)
def test_a_problem_that_no_allowed_kernel_can_run_is_refused_with_reasons(
    options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match="FUSEDRNN_CUDA_KERNEL") as refused:
        plan(**options)
    assert why in str(refused.value)


def test_environment_names_the_kernel_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEDRNN_CUDA_KERNEL", raising=False)
    monkeypatch.delenv("FUSEDRNN_CUDA_TILE", raising=False)
    assert _C.cuda_restriction() == ANY
    for name in ("block", "cluster", "stepwise", "torch"):
        monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", name)
        assert _C.cuda_restriction() == only(name)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "")
    assert _C.cuda_restriction() == ANY
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "fast")
    message = "FUSEDRNN_CUDA_KERNEL must be block, cluster, stepwise or torch, got fast"
    with pytest.raises(ValueError, match=message):
        _C.cuda_restriction()


def test_environment_names_the_tile_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "stepwise")  # the tile is the narrower wish
    monkeypatch.setenv("FUSEDRNN_CUDA_TILE", "7")
    assert _C.cuda_restriction() == Restriction.to_tile(7)
    assert plan(H=100, allowed=_C.cuda_restriction())["tile"] == 7
    for bad in ("seven", "-1", "7.5"):
        monkeypatch.setenv("FUSEDRNN_CUDA_TILE", bad)
        with pytest.raises(ValueError, match=f"FUSEDRNN_CUDA_TILE must be a row .*, got {bad}"):
            _C.cuda_restriction()


def test_each_tile_can_be_had_by_its_number(tiles: list[Kernel]) -> None:
    for tile in tiles:
        alone = Restriction.to_tile(tile.row)
        options: dict[str, Any] = {"mode": tile.mode, "H": tile.hidden}
        found = plan(**options, backward=tile.backward, allowed=alone)
        assert found["tile"] == tile.row
        with pytest.raises(ValueError, match="not among the kernels allowed"):
            plan(**options | {"H": 1}, allowed=only())


def test_the_same_question_has_the_same_answer() -> None:
    assert plan() == plan()
    assert plan("sm_75", B=1000, backward=True) == plan("sm_75", B=1000, backward=True)

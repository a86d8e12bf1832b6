"""The plan for a GPU, held to the limits of every architecture that kernels are built for. It is a
pure function of the problem and those limits, so no GPU is asked, and none is needed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise, product
from math import log2
from pathlib import Path
from typing import Any

import pytest

from fusedrnn import _C
from fusedrnn.plan import GPUS

ROOT = Path(__file__).parents[1]
MODES = ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
SIZES = [1, 2, 37, 64, 100, 128, 129, 150, 160, 192, 200, 256, 300, 384, 511, 512, 513, 1024, 2000]
BATCHES = [1, 2, 3, 16, 32, 64, 100, 132, 133, 264, 265, 528, 1000, 1024]
BLOCK, CLUSTER, STEPWISE, TORCH, ANY = 1, 2, 4, 8, 15
OURS = ANY & ~TORCH

# Every row of the table with both its shapes, as the compiler sees them.
TABLE = r"""
#include <cstdio>
#include "cuda/tiles.h"
using namespace fusedrnn;
using namespace fusedrnn::cuda;
int main() {
  for (const Tile& tile : kTiles) {
    for (int backward = 0; backward < 2; ++backward) {
      const Shape s = backward ? backward_shape(tile) : forward_shape(tile);
      const Cut& cut = backward ? tile.backward : tile.forward;
      std::printf("{\"index\": %d, \"backward\": %d, \"cell\": %d, \"gates\": %d, \"hidden\": %d,"
                  "\"cluster\": %d, \"rows\": %d, \"lanes\": %d, \"threads\": %d, \"units\": %d,"
                  "\"outputs\": %d, \"held\": %d, \"quads\": %d, \"shared_quads\": %d,"
                  "\"registers\": %d, \"shared_bytes\": %lld, \"units_of_thread\": %d}\n",
                  int(&tile - kTiles), backward, int(tile.cell), int(gates_of(tile.cell)),
                  tile.hidden, tile.cluster, tile.rows, cut.lanes, s.threads, s.units, s.outputs,
                  cut.registers, s.quads, s.shared_quads, s.registers(), (long long)s.shared_bytes,
                  backward ? 8 : units_of_thread(tile.cell));
    }
  }
}
"""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    folder = tmp_path_factory.mktemp("tiles")
    source, program = folder / "table.cpp", folder / "table"
    source.write_text(TABLE)
    command = ["g++", "-std=c++20", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def plan(
    gpu: str | dict[str, Any] = "sm_90",
    mode: str = "LSTM",
    T: int = 100,
    B: int = 64,
    H: int = 128,
    *,
    backward: bool = False,
    dtype: str = "float32",
    P: int = 0,
    D: int = 1,
    packed: bool = False,
    training: bool = True,
    allowed: int = ANY,
    L: int = 1,
    tf32: bool = True,
    index: int = -1,
) -> dict[str, Any]:
    device = GPUS[gpu] if isinstance(gpu, str) else gpu
    sizes = (T, B, H, H, P, D, packed, training)
    return _C.cuda_plan(backward, mode, dtype, *sizes, device, allowed, L, tf32, index)


def reasons(**options: Any) -> dict[str, str]:
    """Of each candidate not taken."""
    rejected = plan(**options)["rejected"]
    assert len({name for name, _ in rejected}) == len(rejected)
    return dict(rejected)


def test_each_row_of_the_table_can_be_built_and_started(tiles: list[dict[str, int]]) -> None:
    for tile in tiles:
        assert tile["threads"] % 32 == 0, tile
        assert tile["threads"] <= 1024, tile
        # Registers are given to whole warps, of which each quarter of a multiprocessor takes some.
        assert tile["registers"] * -(-tile["threads"] // 128) * 128 <= 65536, tile
        assert tile["registers"] % 8 == 0 or tile["registers"] == 255, tile
        assert 4 * tile["held"] < tile["registers"], tile
        assert tile["shared_bytes"] <= 227 * 1024, tile
        assert tile["lanes"] in (1, 2, 4, 8, 16, 32), tile
        assert tile["cluster"] in (1, 2, 4, 8, 16), tile
        assert tile["rows"] in (1, 2, 4), tile
        assert tile["units"] * tile["cluster"] == tile["hidden"], tile
        assert tile["units"] % tile["units_of_thread"] == 0, tile
        assert tile["hidden"] % 8 == 0, tile
    assert {tile["cell"] for tile in tiles} == {0, 2, 3}


def test_each_row_of_the_table_holds_all_weights_on_chip(tiles: list[dict[str, int]]) -> None:
    for tile in tiles:
        weights = tile["gates"] * tile["hidden"] * tile["units"]
        assert 4 * tile["quads"] * tile["threads"] >= weights, tile
        assert min(tile["held"], tile["quads"]) + tile["shared_quads"] == tile["quads"], tile


def test_a_cluster_going_back_has_a_thread_for_each_cell(tiles: list[dict[str, int]]) -> None:
    cut_up = [tile for tile in tiles if tile["cluster"] > 1 and tile["backward"]]
    assert cut_up
    for tile in cut_up:
        assert tile["units"] * tile["rows"] <= tile["threads"], tile


def test_no_row_of_the_table_stands_twice(tiles: list[dict[str, int]]) -> None:
    keys = ["backward", "cell", "hidden", "cluster", "rows"]
    assert len({tuple(tile[key] for key in keys) for tile in tiles}) == len(tiles)


@pytest.mark.parametrize("gpu", GPUS)
def test_no_plan_goes_beyond_the_limits_of_its_device(
    gpu: str, tiles: list[dict[str, int]]
) -> None:
    device = GPUS[gpu]
    table = {(tile["index"], bool(tile["backward"])): tile for tile in tiles}
    kernels = set()
    for mode, H, B, backward, D in product(MODES, SIZES, BATCHES, (False, True), (1, 2)):
        found = plan(gpu, mode, B=B, H=H, backward=backward, D=D)
        kernels.add(found["kernel"])
        assert found["step_us"] > 0
        if found["kernel"] in ("stepwise", "torch"):
            assert (found["tile"], found["blocks"], found["threads"]) == (-1, 0, 0)
            continue
        tile = table[found["tile"], backward]
        gates = {"LSTM": 4, "GRU": 3}.get(mode, 1)
        assert tile["gates"] == gates
        for key in ("hidden", "cluster", "rows", "threads", "registers", "shared_bytes"):
            assert found[key] == tile[key]
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
    sizes = (T, 64, 1024, 1024, 0, 1)
    goes = _C.hands_to_torch("LSTM", dtype, *sizes, False, training, GPUS["sm_90"], ANY)
    assert goes is expected


def test_each_candidate_is_either_taken_or_named_with_its_reason(
    tiles: list[dict[str, int]],
) -> None:
    for gpu, H, backward in product(GPUS, (1, 100, 128, 200, 512), (False, True)):
        options: dict[str, Any] = {"gpu": gpu, "H": H, "backward": backward}
        candidates = [t for t in tiles if t["gates"] == 4 and t["hidden"] >= H and t["backward"]]
        assert len(reasons(**options)) == len(candidates) + 2 - 1
        assert all(reasons(**options).values())


def test_reasons_say_what_a_device_lacks(tiles: list[dict[str, int]]) -> None:
    wanted = {"gates": 4, "hidden": 128, "rows": 4, "backward": 0}
    (tile,) = [t for t in tiles if t | wanted == t]
    for gpu, kib in [("sm_75", 64), ("sm_86", 99), ("sm_120", 99)]:
        assert reasons(gpu=gpu)["block LSTM H<=128, 4 rows"] == (
            f"needs {tile['shared_bytes'] / 1024:.1f} KiB of shared memory a block, "
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
        for allowed in (ANY, STEPWISE, TORCH):
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
    ("kernel", "bit"), [("block", BLOCK), ("stepwise", STEPWISE), ("torch", TORCH)]
)
def test_a_kernel_that_alone_is_allowed_is_taken(gpu: str, kernel: str, bit: int) -> None:
    for backward, B in product((False, True), (1, 1024)):
        found = plan(gpu, B=B, H=100, mode="GRU", backward=backward, allowed=bit)
        assert found["kernel"] == kernel
        others = {why for name, why in found["rejected"] if not name.startswith(kernel)}
        assert "not among the kernels allowed" in others


def test_a_cluster_is_taken_when_told_where_there_are_clusters() -> None:
    assert plan(H=128, allowed=CLUSTER)["hidden"] == 160
    assert plan("sm_100", H=500, allowed=CLUSTER)["hidden"] == 512


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"allowed": BLOCK, "H": 129}, "cluster LSTM H<=160, 2 blocks, 1 row: not among"),
        ({"allowed": CLUSTER, "gpu": "sm_80"}, "needs the clusters of compute capability 9.0"),
        ({"allowed": BLOCK, "P": 8}, "h is not projected in it, P = 8"),
        ({"allowed": CLUSTER, "dtype": "float64"}, "computes in float32"),
        ({"allowed": 0}, "stepwise: not among the kernels allowed"),
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
    assert _C.cuda_allowed() == ANY
    bits = {"": ANY, "block": BLOCK, "cluster": CLUSTER, "stepwise": STEPWISE, "torch": TORCH}
    for name, bit in bits.items():
        monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", name)
        assert _C.cuda_allowed() == bit
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "fast")
    message = "FUSEDRNN_CUDA_KERNEL must be block, cluster, stepwise or torch, got fast"
    with pytest.raises(ValueError, match=message):
        _C.cuda_allowed()


def test_environment_names_the_tile_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "stepwise")  # the tile is the narrower wish
    monkeypatch.setenv("FUSEDRNN_CUDA_TILE", "7")
    assert _C.cuda_allowed() == BLOCK | CLUSTER | 8 << 8
    assert plan(H=100, allowed=_C.cuda_allowed())["tile"] == 7
    for bad in ("seven", "-1", "7.5"):
        monkeypatch.setenv("FUSEDRNN_CUDA_TILE", bad)
        with pytest.raises(ValueError, match=f"FUSEDRNN_CUDA_TILE must be a row .*, got {bad}"):
            _C.cuda_allowed()


def test_each_tile_can_be_had_by_its_number(tiles: list[dict[str, int]]) -> None:
    modes = {0: "RNN_TANH", 2: "LSTM", 3: "GRU"}
    for tile in tiles:
        only = BLOCK | CLUSTER | (tile["index"] + 1) << 8
        options: dict[str, Any] = {"mode": modes[tile["cell"]], "H": tile["hidden"]}
        found = plan(**options, backward=bool(tile["backward"]), allowed=only)
        assert found["tile"] == tile["index"]
        with pytest.raises(ValueError, match="not among the kernels allowed"):
            plan(**options | {"H": 1}, allowed=only & ~BLOCK & ~CLUSTER)


def test_the_same_question_has_the_same_answer() -> None:
    assert plan() == plan()
    assert plan("sm_75", B=1000, backward=True) == plan("sm_75", B=1000, backward=True)


def test_each_tile_costs_more_with_more_rows(tiles: list[dict[str, int]]) -> None:
    modes = {0: "RNN_TANH", 2: "LSTM", 3: "GRU"}
    for tile, tf32 in product(tiles, (False, True)):
        only = BLOCK | CLUSTER | (tile["index"] + 1) << 8
        options: dict[str, Any] = {"mode": modes[tile["cell"]], "H": tile["hidden"], "tf32": tf32}
        options |= {"backward": bool(tile["backward"]), "allowed": only}
        by_rows = [plan(B=B, **options)["step_us"] for B in BATCHES]
        # Chunks of products are made from a gain of 5 % on.
        assert all(0.95 * a <= b for a, b in pairwise(by_rows)), (tile, by_rows)


def multiply_cycles(threads: int, quads: int, shared_quads: int, lane_quads: int, rows: int) -> int:
    """Of one block on a multiprocessor of 128 multiply-adds a cycle: the slower of multiply-adds,
    of which a step issues 5 slots for 4 and the busiest of four schedulers decides, and shared
    memory, 4 cycles for a warp's float4 of weights and 2 for one of h."""
    warps = threads // 32
    return max(
        5 * -(-warps // 4) * 4 * quads * rows // 4,
        warps * (4 * shared_quads + 2 * lane_quads * rows),
    )


@pytest.mark.parametrize(
    ("name", "block", "shared", "multiply_adds"),
    [  # threads, quads, shared quads, quads of a lane, rows; counted by hand from the machine code
        ("LSTM 128, 1 row, forward", (256, 64, 15, 8, 1), 608, 512),
        ("LSTM 128, 1 row, backward", (256, 64, 20, 8, 1), 768, 512),
        ("LSTM 128, 2 rows, forward", (256, 64, 18, 8, 2), 832, 1024),
        ("LSTM 128, 4 rows, forward", (256, 64, 31, 8, 4), 1504, 2048),
        ("RNN 256, forward", (256, 64, 14, 8, 1), 576, 512),
    ],
)
def test_cycles_are_counted_as_in_the_machine_code(
    name: str, block: tuple[int, ...], shared: int, multiply_adds: int
) -> None:
    assert multiply_cycles(*block) == max(shared, multiply_adds * 5 // 4), name


def test_a_step_multiplies_as_long_as_the_slower_of_its_two_parts(
    tiles: list[dict[str, int]],
) -> None:
    modes = {0: "RNN_TANH", 2: "LSTM", 3: "GRU"}
    waits: dict[tuple[bool, int], set[int]] = {}
    for tile in tiles:
        only = BLOCK | CLUSTER | (tile["index"] + 1) << 8
        found = plan(
            mode=modes[tile["cell"]],
            T=1_000_000,
            B=tile["rows"],
            H=tile["hidden"],
            backward=bool(tile["backward"]),
            allowed=only,
        )
        lane_quads = tile["quads"] // tile["outputs"]
        cycles = multiply_cycles(
            tile["threads"], tile["quads"], tile["shared_quads"], lane_quads, tile["rows"]
        )
        rest = found["recurrence_us"] * GPUS["sm_90"]["clock_ghz"] * 1e3 - cycles
        waits.setdefault((tile["cluster"] > 1, tile["rows"]), set()).add(round(rest))
    # What remains depends on the kind of kernel and on the rows, not on the tile.
    assert all(len(rest) == 1 for rest in waits.values()), waits
    assert all(400 < rest.pop() < 1200 for rest in waits.values())


def test_warps_that_four_schedulers_share_unevenly_cost_what_the_busiest_does() -> None:
    # Six warps: two schedulers have two, two have one.
    six, eight = (multiply_cycles(n * 32, 48, 0, 6, 1) for n in (6, 8))
    assert six == eight


def test_a_device_that_reports_no_clock_has_a_plan_all_the_same() -> None:
    silent = GPUS["sm_90"] | {"clock_ghz": 0}
    for backward, allowed in product((False, True), (ANY, OURS, TORCH)):
        found = plan(silent, backward=backward, allowed=allowed)
        assert 0 < found["step_us"] < 1000
        assert found["kernel"] == plan(backward=backward, allowed=allowed)["kernel"]


CHUNKED: dict[str, Any] = {"T": 1000, "B": 64, "tf32": False, "allowed": OURS}


def test_products_run_beside_the_recurrence_where_that_pays() -> None:
    for backward in (False, True):
        found = plan(backward=backward, **CHUNKED)
        assert found["kernel"] == "block"
        assert 16 <= found["chunk"] < 1000
        assert found == plan(backward=backward, **CHUNKED)
    # Forward, most of the product is hidden: less remains than it takes by itself.
    hidden, alone = (plan(**CHUNKED | {"T": T}) for T in (1000, 16))
    assert alone["chunk"] == 0
    beside = [p["step_us"] - p["recurrence_us"] for p in (hidden, alone)]
    assert beside[0] < 0.6 * beside[1]


@pytest.mark.parametrize(
    "options",
    [
        {"B": 132},  # no multiprocessor is left
        {"T": 31},  # not two chunks of 16 steps
        {"B": 1, "H": 32},  # too little to hide
        {"allowed": STEPWISE},
        {"allowed": TORCH},
    ],
    ids=str,
)
def test_one_launch_serves_where_chunks_would_gain_little(options: dict[str, Any]) -> None:
    for backward in (False, True):
        assert plan(backward=backward, **CHUNKED | options)["chunk"] == 0


def test_inference_keeps_few_slots_at_once() -> None:
    sizes: dict[str, Any] = {"T": 500, "B": 256, "H": 512, "allowed": CLUSTER}
    found = plan(training=False, **sizes)
    slots = 4 * 4 * 256 * 512
    assert 500 * slots > 1 << 30 - 1
    assert 16 <= found["chunk"] <= 500
    assert 2 * found["chunk"] * slots <= 256 << 20
    # In training, the reserve holds them; an Elman cell has none.
    assert plan(**sizes)["chunk"] == 0
    elman = plan(mode="RNN_TANH", T=2000, B=256, H=512, allowed=CLUSTER)
    assert 0 < 2 * elman["chunk"] * slots // 4 <= 256 << 20
    assert plan(training=False, **sizes | {"T": 30})["chunk"] == 0
    # Rows so many that 16 steps are too much: chunks are no shorter.
    assert plan(training=False, T=100, B=20_000, H=512, allowed=CLUSTER)["chunk"] == 16


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


def hands(index: int) -> bool:
    sizes = ("LSTM", "float32", 100, 64, 128, 128, 0, 1)
    return _C.hands_to_torch(*sizes, False, True, GPUS["sm_90"], ANY, 1, True, index)


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

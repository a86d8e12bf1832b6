"""What the plan estimates a step to cost: how it counts cycles, when products run in chunks."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest

from fusedrnn._C import Restriction
from fusedrnn.plan import GPUS
from support.planning import ANY, BATCHES, BLOCK, CLUSTER, OURS, STEPWISE, TORCH, plan
from support.tiles import Kernel


def test_each_tile_costs_more_with_more_rows(tiles: list[Kernel]) -> None:
    for tile, tf32 in product(tiles, (False, True)):
        only = Restriction.to_tile(tile.row)
        options: dict[str, Any] = {"mode": tile.mode, "H": tile.hidden, "tf32": tf32}
        options |= {"backward": tile.backward, "allowed": only}
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
        # Six warps: two schedulers have two, two have one, and all take as long as eight warps do.
        ("LSTM 96, 1 row, forward", (192, 48, 0, 6, 1), 72, 384),
    ],
)
def test_cycles_are_counted_as_in_the_machine_code(
    name: str, block: tuple[int, ...], shared: int, multiply_adds: int
) -> None:
    assert multiply_cycles(*block) == max(shared, multiply_adds * 5 // 4), name


def test_a_step_multiplies_as_long_as_the_slower_of_its_two_parts(
    tiles: list[Kernel],
) -> None:
    waits: dict[tuple[bool, int], set[int]] = {}
    for tile in tiles:
        only = Restriction.to_tile(tile.row)
        found = plan(
            mode=tile.mode,
            T=1_000_000,
            B=tile.rows,
            H=tile.hidden,
            backward=tile.backward,
            allowed=only,
        )
        lane_quads = tile.quads // tile.outputs
        cycles = multiply_cycles(tile.threads, tile.quads, tile.shared_quads, lane_quads, tile.rows)
        rest = found["recurrence_us"] * GPUS["sm_90"]["clock_ghz"] * 1e3 - cycles
        waits.setdefault((tile.cluster > 1, tile.rows), set()).add(round(rest))
    # What remains depends on the kind of kernel and on the rows, not on the tile.
    assert all(len(rest) == 1 for rest in waits.values()), waits
    assert all(400 < rest.pop() < 1200 for rest in waits.values())


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


def test_a_stack_shares_the_latency_of_cudnns_steps_but_not_their_work() -> None:
    def steps(**options: Any) -> list[float]:
        return [plan(allowed=TORCH, L=L, **options)["step_us"] for L in (1, 2, 3, 9)]

    for backward in (False, True):
        small = steps(H=512, B=1, backward=backward)
        assert small[1] < 0.55 * small[0]
        assert small[2] < 0.4 * small[0]
        assert small[2] == small[3]  # three layers at once, no more
        large = steps(H=1024, B=1024, backward=backward)
        assert large[3] > 0.85 * large[0]
    ours = [plan(allowed=OURS, L=L) for L in (1, 3)]
    assert ours[0] == ours[1]


def test_cudnns_persistent_kernel_multiplies_in_fp32_whatever_the_switch() -> None:
    alone = []
    for tf32 in (False, True):
        theirs, ours = (plan(B=256, tf32=tf32, allowed=allowed) for allowed in (TORCH, BLOCK))
        alone.append(theirs["step_us"] - (ours["step_us"] - ours["recurrence_us"]))
    assert alone[0] == pytest.approx(alone[1])
    assert alone[0] > 2.65

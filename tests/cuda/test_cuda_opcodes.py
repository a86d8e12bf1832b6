"""What nvcc makes of the persistent kernels, instruction by instruction: the PTX of each holds as
many waits, sends, shuffles, loads and special functions as the row of csrc/cuda/tiles.h implies, in
the order that was meant, and nothing of what makes kernels slow without anyone noticing."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import log2

import pytest

from support.commands import needs_nvcc
from support.nvcc import compiled
from support.paths import CSRC
from support.tiles import Kernel

SOURCES = sorted((CSRC / "cuda").rglob("*ward_*.cu"))

WAIT = "mbarrier.try_wait.parity.shared::cta.b64"
ARM = "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64"
INIT = "mbarrier.init.shared::cta.b64"
FENCE = "fence.mbarrier_init.release.cluster"
ADDRESS = "mapa.shared::cluster.u32"
SEND = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes."
SENDS = {1: f"{SEND}b32", 2: f"{SEND}v2.b32", 4: f"{SEND}v4.b32"}  # by floats
CLUSTER_BARRIER = ("barrier.cluster.arrive.release.aligned", "barrier.cluster.wait.acquire.aligned")
SHUFFLE, BARRIER = "shfl.sync.bfly.b32", "bar.sync"
EXP, RECIPROCAL, PREFETCH = "ex2.approx.ftz.f32", "rcp.approx.ftz.f32", "prefetch.global.L2"
OFFSET, LOAD = "ld.global.s32", "ld.global.f32"
CALL = "call.uni"

# What no kernel may have at all: memory of a thread's own, slow functions, other widths of what is
# counted below.
BANNED = r"ld\.local|st\.local|div\.|sqrt|\.f64|atom|\bred\.|nanosleep|brx|trap|ld\.global\.nc|vote"
COUNTED = r"mbarrier|st\.async|mapa|fence|barrier|bar\.|shfl|ex2|rcp|prefetch|ld\.global\.s|call"

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "MGU": 2}
# Loads of a step in backward: dy, and of what forward kept the slots, c before, and h or h before.
KEPT = {"LSTM": 1 + 4 + 1, "GRU": 1 + 4 + 1, "RNN": 1 + 1, "MGU": 1 + 3 + 1}


class Split:
    """How the lanes of a sum end up with their share of it: LaneSplit of csrc/cuda/tile.cuh."""

    def __init__(self, kernel: Kernel) -> None:
        forward = kernel.direction == "forward"
        gates = GATES[kernel.cell] if forward else 1
        pairs = kernel.outputs // gates * kernel.rows
        stages = int(log2(kernel.lanes))
        pair_stages = min(stages, int(log2(pairs)))
        gate_stages = min(stages - pair_stages, 2) if gates == 4 else 0
        self.states = pairs >> pair_stages
        self.gates = gates >> gate_stages  # of each state that a lane holds
        self.copies = kernel.lanes >> pair_stages
        # A stage that halves the sums exchanges half of them, any other one all.
        held, self.shuffles = pairs * gates, 0
        for stage in range(stages):
            held = held // 2 if stage < pair_stages + gate_stages else held
            self.shuffles += held
        # All gates from lanes that hold two, or one.
        self.shuffles += self.states * {1: 0, 2: 2, 4: 3}[gates // self.gates]


def expected(kernel: Kernel) -> Counter[str]:
    split = Split(kernel)
    counts: Counter[str] = Counter()
    if kernel.direction == "forward":
        activations = split.gates + (kernel.cell == "LSTM")  # of c
        counts[EXP] = counts[RECIPROCAL] = split.states * activations
        counts[PREFETCH] = split.states * split.gates
        # Ranges of rows are two loads: two before the loop and one in it; and the number of rows.
        counts[OFFSET] = 4 * split.states + 1 + 2
        gathers = kernel.cluster > split.copies
        floats, sends = (4, kernel.cluster // (4 * split.copies) or 1) if gathers else (1, 1)
        counts[SHUFFLE] = split.shuffles + (3 if gathers else 0) * split.states
        sends *= split.states
        waits = 1
    else:
        states = split.states if kernel.cluster == 1 else 1
        if kernel.cell == "LSTM":
            counts[EXP] = counts[RECIPROCAL] = states  # tanh(c)
            counts[PREFETCH] = states  # the gradient that c has as a result
        counts[OFFSET] = 6 * states + 2
        counts[SHUFFLE] = split.shuffles
        floats = min(split.states, 4)
        sends = split.states // floats
        waits = 2  # in the loop and after it
    if kernel.cluster > 1:
        counts[INIT] = counts[FENCE] = 2
        counts[WAIT] = counts[CALL] = waits  # a wait that takes too long ends in a call
        counts[ARM] = 2 + waits
        counts[SENDS[floats]] = sends
        counts[ADDRESS] = 2 * sends
        for half in CLUSTER_BARRIER:
            counts[half] = 2
    return +counts


def instructions(body: str) -> list[str]:
    """Of a kernel's PTX the opcodes in order; a predicated one has an @ before it."""
    found = re.findall(r"^\s*(?:(@)!?%?\w+\s+)?([a-z][\w.:]*)[ \t;]", body, re.MULTILINE)
    return [guard + opcode for guard, opcode in found]


def faults(kernel: Kernel, body: str) -> list[str]:
    """How the code of a kernel differs from what its row of the table implies."""
    code = instructions(body)
    plain = [opcode.removeprefix("@") for opcode in code]
    wrong = [f"{opcode} is there" for opcode in plain if re.search(BANNED, opcode)]
    found = Counter(opcode for opcode in plain if re.search(COUNTED, opcode))
    barriers = found.pop(BARRIER, 0)
    want = expected(kernel)
    wrong += [
        f"{opcode}: {found[opcode]}, not {want[opcode]}"
        for opcode in sorted(found | want)
        if found[opcode] != want[opcode]
    ]
    # The first barrier of all follows loads into shared memory, if any; then the one that ends the
    # prologue and, but for a forward cluster, the one of a step.
    steps = not (kernel.direction == "forward" and kernel.cluster > 1)
    if barriers < 1 + steps:
        wrong.append(f"{barriers} barriers of the block")
    return wrong or misplaced(kernel, code)


def misplaced(kernel: Kernel, code: list[str]) -> list[str]:
    """Loads of the time loop that are not behind its barrier and before the sums are made."""
    split = Split(kernel)
    shuffle = code.index(SHUFFLE)
    if kernel.direction == "forward":
        loads = split.states * split.gates
        # A block's barrier ends the step before: here its last one before the loop.
        after = WAIT if kernel.cluster > 1 else BARRIER
    else:
        loads = KEPT[kernel.cell] * (split.states if kernel.cluster == 1 else 1)
        after = BARRIER
    start = max(i for i in range(shuffle) if code[i] == after)
    between = [opcode for opcode in code[start:shuffle] if LOAD in opcode]
    if kernel.direction == "forward" and kernel.cluster == 1:
        between = between[-loads:]  # before them come the first step's
    if between != ["@" + LOAD] * loads:
        return [f"{loads} loads of the next step should follow {after}: {Counter(between)}"]
    return []


@pytest.fixture(scope="module")
def table(tiles: list[Kernel]) -> dict[tuple[str, int], Kernel]:
    return {(kernel.direction, kernel.row): kernel for kernel in tiles}


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    """The PTX of each persistent kernel."""
    with ThreadPoolExecutor(2) as workers:
        made = workers.map(lambda source: compiled(source, "90a", tmp_path_factory), SOURCES)
        entries = "".join(each.ptx for each in made).split(".visible .entry ")[1:]
    found = {}
    for entry in entries:
        name = re.match(r"\w*recurrence_(forward|backward)ILi(\d+)E", entry)
        assert name, entry[:80]
        found[name[1], int(name[2])] = entry
    return found


@needs_nvcc
def test_each_kernel_has_the_instructions_its_row_implies(
    table: dict[tuple[str, int], Kernel], bodies: dict[tuple[str, int], str]
) -> None:
    assert bodies.keys() == table.keys()
    wrong = {key: found for key in bodies if (found := faults(table[key], bodies[key]))}
    assert wrong == {}


@needs_nvcc
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (WAIT, "mbarrier.test_wait.parity.shared::cta.b64", f"{WAIT}: 0, not 1"),
        (SENDS[4], SENDS[1], "v4.b32: 0, not"),
        (EXP, "ex2.approx.f32", "ex2.approx.f32: "),
        ("fma.rn.f32", "ld.local.f32", "ld.local.f32 is there"),
        ("@wanted ld.global.f32", "ld.global.f32", "loads of the next step should follow"),
        ("@wanted prefetch.global.L2", "// ", f"{PREFETCH}: 0, not"),
    ],
)
def test_a_kernel_with_other_instructions_is_found(
    table: dict[tuple[str, int], Kernel],
    bodies: dict[tuple[str, int], str],
    old: str,
    new: str,
    says: str,
) -> None:
    wanted = ("forward", "LSTM", 512, 16, 4)
    (key,) = [
        key
        for key, k in table.items()
        if (k.direction, k.cell, k.hidden, k.cluster, k.rows) == wanted
    ]
    assert faults(table[key], bodies[key]) == []
    assert old in bodies[key]
    assert any(says in fault for fault in faults(table[key], bodies[key].replace(old, new)))

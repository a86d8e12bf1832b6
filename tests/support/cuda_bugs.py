"""Bugs to plant into the CUDA kernels, each a substitution of text that stands in the source once
and a source that it reaches. tests/cuda/test_cuda_host.py holds the host build to finding them all.

Not among them: the last cluster_sync of a kernel. Each store sent is awaited by the block it goes
to, so that none can be under way when that block ends, and no order of execution misses it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Bug(NamedTuple):
    source: str  # the .cu to compile again
    what: str  # to run
    edits: tuple[tuple[str, str, str], ...]  # header or source, old text, new text


def plant(bug: Bug, cuda: Path) -> None:
    """Into a copy of csrc/cuda. ValueError where the source no longer has the bug's place: then the
    bug has to follow the source, or to go with what it broke."""
    for file, old, new in bug.edits:
        text = (cuda / file).read_text()
        if text.count(old) != 1:
            raise ValueError(
                f"{old!r} stands {text.count(old)} times in csrc/cuda/{file}, not once"
            )
        (cuda / file).write_text(text.replace(old, new))


def bug(source: str, what: str, *edit: str) -> Bug:
    edits = tuple((edit[i], edit[i + 1], edit[i + 2]) for i in range(0, len(edit), 3))
    return Bug(source, what, edits)


FORWARD, TILE, CELL = "persistent/forward.cuh", "persistent/tile.cuh", "cell.cuh"
BACKWARD, BLOCK = "persistent/backward.cuh", "persistent/backward_block.cuh"
CLUSTER, STEPWISE = "persistent/backward_cluster.cuh", "stepwise/stepwise.cu"
LSTM, GRU, RNN = (f"instances/forward_{cell}.cu" for cell in ("lstm", "gru", "rnn"))
LSTM_BACK, GRU_BACK = "instances/backward_lstm.cu", "instances/backward_gru.cu"

ARM_FIRST = "          barrier_arm(barriers + i, kBytes);\n"
ARM_AGAIN = "if (thread == 0) barrier_arm(barriers + even, kBytes);"

BUGS = {
    # Forward: what orders the steps.
    "forward: no barrier": bug(
        *(LSTM, "LSTM", FORWARD, "      if constexpr (kCluster == 1) block_sync();\n", "")
    ),
    "forward: one buffer of h": bug(
        *(LSTM, "LSTM", FORWARD, "h_now = h_buffers + even * kBufferSize;", "h_now = h_buffers;"),
        *(FORWARD, "h_next = h_buffers + (1 - even) * kBufferSize;", "h_next = h_buffers;"),
    ),
    "forward: no wait": bug(
        *(LSTM, "LSTM", FORWARD, "barrier_wait(barriers + even, (step - begin - 1) >> 1 & 1);", "")
    ),
    "forward: wait for the other phase": bug(
        *(LSTM, "LSTM", FORWARD, "(step - begin - 1) >> 1 & 1)", "(step - begin) >> 1 & 1)")
    ),
    "forward: armed for half": bug(
        *(LSTM, "LSTM", FORWARD, "kRows * kShapeOf.hidden * 4;", "kRows * kShapeOf.hidden * 2;")
    ),
    "forward: never armed": bug(LSTM, "LSTM", FORWARD, ARM_FIRST, ""),
    "forward: not armed again": bug(LSTM, "LSTM", FORWARD, ARM_AGAIN, ""),
    "forward: no first barrier of the cluster": bug(
        *(GRU, "GRU", FORWARD, "      block_sync();\n      cluster_sync();\n", "block_sync();\n")
    ),
    "forward: copies send to the same block": bug(
        *(LSTM, "LSTM", FORWARD, "send(to, split.copy, h, barrier);", "send(to, 0, h, barrier);")
    ),
    "forward: four units go to the same blocks": bug(
        *(LSTM, "LSTM", FORWARD, "sender = split.copy * 4 + unit % 4;", "sender = split.copy * 4;")
    ),
    "forward: four units to the place of one": bug(
        *(LSTM, "LSTM", FORWARD, "float4*>(to - unit % 4);", "float4*>(to);")
    ),
    "forward: units of the wrong lane": bug(
        *(
            LSTM,
            "LSTM",
            TILE,
            "odd = unit & 1, last = unit & 2;",
            "odd = unit & 2, last = unit & 1;",
        )
    ),
    "forward: units a lane too far": bug(
        *(GRU, "GRU", TILE, "? kStride << kBits >> 1 : 1;", "? kStride << kBits >> 2 : 1;")
    ),
    # Forward: what goes where.
    "forward: a row past its length": bug(
        *(LSTM, "LSTM", TILE, "batch_row < end - first ?", "batch_row <= end - first ?")
    ),
    "forward: a step past the last": bug(
        *(LSTM, "LSTM", TILE, "is_step = step < T,", "is_step = step <= T,")
    ),
    "forward: weights past H": bug(
        *(LSTM, "LSTM", FORWARD, "column, H, unit < H)", "column, H, true)")
    ),
    "forward: h0 past H": bug(
        *(GRU, "GRU", FORWARD, "i < kBufferSize && b < B && column < H", "i < kBufferSize && b < B")
    ),
    "forward: h0 past B": bug(
        *(GRU, "GRU", FORWARD, "i < kBufferSize && b < B &&", "i < kBufferSize &&")
    ),
    "forward: the wrong gate is a tanh": bug(
        *(LSTM, "LSTM", FORWARD, "split.first_gate == CellType::kTanhGate", "split.first_gate == 1")
    ),
    "forward: gates of the wrong lane": bug(
        *(LSTM, "LSTM", TILE, "const bool last = first_gate & 2;", "const bool last = false;")
    ),
    "forward: the wrong lanes are summed": bug(
        *(RNN, "RNN", TILE, "const bool upper = lane >> kStage & 1;", "const bool upper = false;")
    ),
    "forward: weights of shared memory out of order": bug(
        *(LSTM, "LSTM", TILE, "shared_[shared_index(q) * kThreads] = w", "shared_[0] = w")
    ),
    "forward: b_hh outside of r": bug(
        *(GRU, "GRU", FORWARD, "is_inner<kCell>(g) ? 0.0f : bias", "false ? 0.0f : bias"),
        *(FORWARD, "(is_inner<kCell>(g) ? bias", "(false ? bias"),
    ),
    "forward: slots out of order": bug(
        *(GRU, "GRU", CELL, "? input_slot<kCell>(position) : position;", "? position : position;")
    ),
    "forward: relu is tanh": bug(
        *(RNN, "RNN", CELL, "second ? Second::forward(", "second ? First::forward(")
    ),
    "forward: rows of y side by side": bug(
        *(RNN, "RNN", FORWARD, "at(my_y, now[i], ldy)", "at(my_y, now[i], H)")
    ),
    "forward: slots overwritten in inference": bug(
        *(LSTM, "LSTM", FORWARD, ">= 0 && training && split.owns", ">= 0 && split.owns")
    ),
    "forward: rows of c side by side": bug(
        *(LSTM, "LSTM", FORWARD, "at(my_c, now[i], ldc)", "at(my_c, now[i], H)")
    ),
    "forward: c in training alone": bug(
        *(LSTM, "LSTM", FORWARD, "CellType::kHasC && io.c)", "CellType::kHasC && training)")
    ),
    "forward: both directions ascend": bug(
        *(RNN, "RNN", FORWARD, "T, B, direction == 1};", "T, B, false};")
    ),
    "forward: a part starts on the first rows": bug(
        *(LSTM, "LSTM", FORWARD, "row_of(steps(begin), i)", "row_of(steps(0), i)")
    ),
    "forward: a part looks ahead from the first step": bug(
        *(RNN, "RNN", FORWARD, "row_of(steps(begin + 1), i)", "row_of(steps(1), i)")
    ),
    "forward: a part starts on the other buffer": bug(
        *(GRU, "GRU", FORWARD, "even = (step - begin) & 1;", "even = step & 1;")
    ),
    "forward: a part waits for the phase of a whole": bug(
        *(LSTM, "LSTM", FORWARD, "(step - begin - 1) >> 1 & 1)", "(step - 1) >> 1 & 1)")
    ),
    "forward: a part sends after its last step": bug(
        *(LSTM, "LSTM", FORWARD, "(step + 1 < end)", "(step + 1 < T)")
    ),
    "forward: a prefetch past the rows": bug(
        *(
            LSTM,
            "LSTM",
            TILE,
            "return row < uint32_t(rows) ? int(row) : kNoRow;",
            "return int(row);",
        )
    ),
    "forward: a prefetch the other way": bug(
        *(
            RNN,
            "RNN",
            TILE,
            "4u * uint32_t(next) - 3u * uint32_t(before)",
            "3u * uint32_t(before) - 2u * uint32_t(next)",
        )
    ),
    # Backward.
    "backward: a part starts on the last rows": bug(
        *(LSTM_BACK, "LSTM", BACKWARD, "now_ = steps(begin).row", "now_ = steps(0).row")
    ),
    "backward: a part stops with the sequence": bug(
        *(GRU_BACK, "GRU", BLOCK, "step < end; ++step", "step < int(p.problem.T); ++step")
    ),
    "backward, cluster: a part looks ahead from the last step": bug(
        *(
            LSTM_BACK,
            "LSTM",
            CLUSTER,
            "ahead = steps(begin + step + 3);",
            "ahead = steps(step + 3);",
        )
    ),
    "backward: no barrier": bug(*(LSTM_BACK, "LSTM", BLOCK, "      block_sync();\n", "")),
    "backward: one buffer of gate gradients": bug(
        *(LSTM_BACK, "LSTM", BLOCK, "buffers + ((step - begin) & 1) * kBufferSize;", "buffers;")
    ),
    "backward: dh lost where a row has no step": bug(
        *(GRU_BACK, "GRU", BACKWARD, "unweighted_ = active ? dh.v : dh_;", "unweighted_ = dh.v;")
    ),
    "backward: c unknown where a row begins": bug(
        *(LSTM_BACK, "LSTM", BACKWARD, "    c_ = c_before_;", "    c_ = active ? c_before_ : c_;")
    ),
    "backward: no initial state": bug(
        *(GRU_BACK, "GRU", BACKWARD, "first = now >= 0 && before < 0;", "first = false;")
    ),
    "backward: dy is read where there is none": bug(
        *(LSTM_BACK, "LSTM", BACKWARD, "load_if(io.dy && now >= 0,", "load_if(now >= 0,")
    ),
    "backward: the gradient of c of the next step": bug(
        *(LSTM_BACK, "LSTM", BACKWARD, "at(column(dc), now_, lddc)", "at(column(dc), next_, lddc)")
    ),
    "backward: the gradient of c is read where there is none": bug(
        *(LSTM_BACK, "LSTM", BACKWARD, "load_if(dc && now_ >= 0,", "load_if(now_ >= 0,")
    ),
    "backward: the gradient of c past a row's end": bug(
        *(LSTM_BACK, "LSTM", BACKWARD, "load_if(dc && now_ >= 0,", "load_if(dc,")
    ),
    "backward: the gradient of c left out": bug(
        *(LSTM_BACK, "LSTM", BLOCK, "states.of[i].add_slope_of_c(p);", ";")
    ),
    "backward, cluster: the gradient of c left out": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "state.add_slope_of_c(p);", "")
    ),
    "backward: the wrong gradient reaches h": bug(
        *(GRU_BACK, "GRU", CELL, "SlotsOf<kCell>::kRecurrent >>", "SlotsOf<kCell>::kInput >>")
    ),
    "backward: rows of the wrong step": bug(
        *(GRU_BACK, "GRU", BLOCK, "ahead = steps(step + 3);", "ahead = steps(step + 2);")
    ),
    "backward: weights of shared memory out of order": bug(
        *(LSTM_BACK, "LSTM", TILE, "* kGrain + q % kGrain;", "* kGrain;")
    ),
    "backward: weights past H": bug(
        *(LSTM_BACK, "LSTM", BACKWARD, "gate < kGates && unit + e < H);", "gate < kGates);")
    ),
    "backward, cluster: no barrier of the block": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "      block_sync();\n", "")
    ),
    "backward, cluster: one buffer of gate gradients": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "buffers + even * kBufferSize;", "buffers;")
    ),
    "backward, cluster: no wait": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "barrier_wait(barriers + even, (step - 1) >> 1 & 1);", "")
    ),
    "backward, cluster: armed for half": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "kCluster * kCells * 4;", "kCluster * kCells * 2;")
    ),
    "backward, cluster: not armed again": bug(LSTM_BACK, "LSTM", CLUSTER, ARM_AGAIN, ""),
    "backward, cluster: no first barrier of the cluster": bug(
        *(GRU_BACK, "GRU", CLUSTER, "  block_sync();\n    cluster_sync();\n", "block_sync();\n")
    ),
    "backward, cluster: one buffer of shares": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "(even * kCluster + k)", "k"),
        *(CLUSTER, "(other * kCluster + rank)", "rank"),
    ),
    "backward, cluster: shares on top of each other": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "* kCluster + rank) * kCells", "* kCluster) * kCells")
    ),
    "backward, cluster: shares to the wrong block": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "kOutputs / kUnits;", "kOutputs / kUnits ^ 1;")
    ),
    "backward, cluster: every copy sends": bug(
        *(GRU_BACK, "GRU", CLUSTER, "if (split.copy == 0) send_shares", "send_shares")
    ),
    "backward, cluster: a share of each row after the other": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "own_unit = thread / kRows,", "own_unit = thread % kUnits,")
    ),
    "backward, cluster: shares of the first row only": bug(
        *(LSTM_BACK, "LSTM", CLUSTER, "% kUnits * kRows + split", "% kUnits + split")
    ),
    "backward, cluster: values of a send in the wrong order": bug(
        *(
            LSTM_BACK,
            "LSTM",
            CLUSTER,
            "make_float2(values[0], values[1])",
            "make_float2(values[1], values[0])",
        )
    ),
    # Stepwise.
    "stepwise: a state carried past its length": bug(
        *(STEPWISE, "stepwise", STEPWISE, "carried = row < a.rows_prev;", "carried = true;")
    ),
    "stepwise: rows of the gradient of c side by side": bug(
        *(
            STEPWISE,
            "stepwise",
            STEPWISE,
            "load<T>(a.dc, row * a.lddc + unit)",
            "load<T>(a.dc, state)",
        )
    ),
    "stepwise: rows of c side by side": bug(
        *(
            STEPWISE,
            "stepwise",
            STEPWISE,
            "store(a.c, row * a.ldc + unit, c)",
            "store(a.c, state, c)",
        )
    ),
    "stepwise: the step after": bug(
        *(STEPWISE, "stepwise", STEPWISE, "(middle) <= row ?", "(middle) < row ?")
    ),
    "stepwise: h of the wrong neighbour": bug(
        *(STEPWISE, "stepwise", STEPWISE, "a.offsets, p.reverse};", "a.offsets, !p.reverse};")
    ),
    "stepwise: a thread past the columns": bug(
        *(STEPWISE, "stepwise", STEPWISE, "if (column >= e.columns) return;", "")
    ),
}

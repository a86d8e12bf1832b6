"""Asks the plan for GPUs that need not be there: the questions its tests share."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from fusedrnn import _C
from fusedrnn._C import Restriction
from fusedrnn.plan import GPUS
from support.paths import ROOT

MODES = ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
SIZES = [1, 2, 37, 64, 100, 128, 129, 150, 160, 192, 200, 256, 300, 384, 511, 512, 513, 1024, 2000]
BATCHES = [1, 2, 3, 16, 32, 64, 100, 132, 133, 264, 265, 528, 1000, 1024]


def only(*kernels: str) -> Restriction:
    """To these kernels."""
    every = ("block", "cluster", "stepwise", "torch")
    return Restriction(**{name: name in kernels for name in every})


ANY = Restriction()
BLOCK, CLUSTER, STEPWISE, TORCH = map(only, ("block", "cluster", "stepwise", "torch"))
OURS, PERSISTENT = only("block", "cluster", "stepwise"), only("block", "cluster")

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


def table(folder: Path) -> list[dict[str, int]]:
    source, program = folder / "table.cpp", folder / "table"
    source.write_text(TABLE)
    command = ["g++", "-std=c++20", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def problem(mode: str, T: int, B: int, H: int, **options: Any) -> dict[str, Any]:
    """As _C.cuda_plan and _C.cuda_choice take it: I = H, one direction, training in float32."""
    plain = {"dtype": "float32", "I": H, "P": 0, "D": 1, "packed": False, "training": True}
    return {"mode": mode, "T": T, "B": B, "H": H} | plain | options


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
    allowed: Restriction = ANY,
    L: int = 1,
    tf32: bool = True,
    index: int = -1,
) -> dict[str, Any]:
    device = GPUS[gpu] if isinstance(gpu, str) else gpu
    asked = problem(mode, T, B, H, dtype=dtype, P=P, D=D, packed=packed, training=training)
    return _C.cuda_plan(asked | {"L": L, "tf32": tf32}, device, allowed, backward, index)


def reasons(**options: Any) -> dict[str, str]:
    """Of each candidate not taken."""
    rejected = plan(**options)["rejected"]
    assert len({name for name, _ in rejected}) == len(rejected)
    return dict(rejected)

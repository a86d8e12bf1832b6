"""Asks the plan for GPUs that need not be there: the questions its tests share."""

from __future__ import annotations

from typing import Any

from fusedrnn import _C
from fusedrnn._C import Restriction
from fusedrnn.plan import GPUS
from support.theirs import MODES as MODES

SIZES = [1, 2, 37, 64, 100, 128, 129, 150, 160, 192, 200, 256, 300, 384, 511, 512, 513, 1024, 2000]
BATCHES = [1, 2, 3, 16, 32, 64, 100, 132, 133, 264, 265, 528, 1000, 1024]


def only(*kernels: str) -> Restriction:
    """To these kernels."""
    every = ("block", "cluster", "stepwise", "torch")
    return Restriction(**{name: name in kernels for name in every})


ANY = Restriction()
BLOCK, CLUSTER, STEPWISE, TORCH = map(only, ("block", "cluster", "stepwise", "torch"))
OURS, PERSISTENT = only("block", "cluster", "stepwise"), only("block", "cluster")


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

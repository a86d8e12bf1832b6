"""Prints which way the plan sends a layer on a GPU, and by what margin. No GPU is asked.

    python -m benchmarks gpu-plan sm_90 [--L 2] [--T 100] [--ieee] [--inference]

One table a cell, a row for each H, a column for each B: `block 3.9x` says that the layer runs on
block kernels, which are estimated to take a 3.9th of cuDNN's time; `cuDNN 1.4x`, that cuDNN is
estimated to take a 1.4th of ours. A slash parts forward and backward where they differ. A star:
ours is estimated faster, but in more waves of blocks than are trusted before it is measured. Every
figure is an estimate (csrc/cuda/tuning.h).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks import options
from benchmarks.report.figures import columns
from fusedrnn import ops
from fusedrnn.plan import GPUS

MODES = ("LSTM", "GRU", "RNN_TANH")
SIZES = (32, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024)
BATCHES = (1, 4, 16, 32, 64, 128, 256, 512, 1024)
ANY, OURS = ops.Restriction(), ops.Restriction(torch=False)
TORCH = ops.Restriction(block=False, cluster=False, stepwise=False)


@dataclass(frozen=True)
class Case:
    """A layer of a stack of L, as torch's default state would run it, I = H."""

    gpu: str
    mode: str
    B: int
    H: int
    L: int = 1
    tf32: bool = True
    T: int = 100
    training: bool = True

    def problem(self) -> dict[str, Any]:
        sizes = {"T": self.T, "B": self.B, "I": self.H, "H": self.H, "P": 0, "D": 1}
        rest = {"packed": False, "training": self.training}
        more = {"L": self.L, "tf32": self.tf32}
        return {"mode": self.mode, "dtype": "float32", **sizes, **rest, **more}


@dataclass(frozen=True)
class Verdict:
    """Where a case goes, and what both ways are estimated to take in all passes, us a step."""

    case: Case
    by_torch: bool
    kernels: tuple[str, ...]  # of ours, by pass
    ours_us: float
    theirs_us: float

    def __str__(self) -> str:
        if not self.by_torch:
            return f"{'/'.join(dict.fromkeys(self.kernels))} {self.theirs_us / self.ours_us:.1f}x"
        star = "*" if self.ours_us < self.theirs_us else ""
        return f"cuDNN {self.ours_us / self.theirs_us:.1f}x{star}"


def plans(case: Case, allowed: ops.Restriction) -> list[dict[str, Any]]:
    """Of each pass."""
    passes = (False, True) if case.training else (False,)
    return [ops.cuda_plan(case.problem(), GPUS[case.gpu], allowed, b) for b in passes]


def verdict(case: Case) -> Verdict:
    by_torch = ops.cuda_choice(case.problem(), GPUS[case.gpu])["by_torch"]
    ours, theirs = plans(case, OURS), plans(case, TORCH)
    kernels = tuple(plan["kernel"] for plan in ours)
    total = [sum(plan["step_us"] for plan in way) for way in (ours, theirs)]
    return Verdict(case, by_torch, kernels, *total)


def walk(gpu: str, **options: Any) -> Iterator[Verdict]:
    """Every cell, H and B."""
    for mode, H, B in product(MODES, SIZES, BATCHES):
        yield verdict(Case(gpu, mode, B, H, **options))


def tables(verdicts: Sequence[Verdict]) -> list[str]:
    lines = []
    for mode in MODES:
        found = {(v.case.H, v.case.B): str(v) for v in verdicts if v.case.mode == mode}
        rows = [(str(H), *(found[H, B] for B in BATCHES)) for H in SIZES]
        head = (f"{mode} H", *(f"B {B}" for B in BATCHES))
        lines += [*columns([head, *rows], left=1), ""]
    return lines


def main(argv: Sequence[str]) -> int:
    top = options.parser("gpu-plan", "Prints which way the plan sends a layer.")
    top.add_argument("gpu", choices=GPUS)
    top.add_argument("--L", type=int, default=1, help="layers of the stack (1)")
    top.add_argument("--T", type=int, default=100, help="time steps (100)")
    top.add_argument("--ieee", action="store_true", help="torch's switch for RNNs forbids TF32")
    top.add_argument("--inference", action="store_true", help="forward alone")
    a = top.parse_args(argv)
    chosen = {"L": a.L, "T": a.T, "tf32": not a.ieee, "training": not a.inference}
    print("\n".join(tables([*walk(a.gpu, **chosen)])))
    return 0

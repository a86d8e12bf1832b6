"""The process in which ``fusedrnn tune`` tries kernels, so that one may hang or crash.

It reads one job a line, as JSON: a class of problems and a candidate for one pass. It answers each
with one line, which is

- ``{"step_us": {"training": ..., "inference": ...}}``;
- ``{"failed": reason}`` if the kernel is wrong or does not start, with ``"dead": true`` if it
  leaves the device unusable, which ends the process; or
- ``{"left_out": reason}`` if memory does not suffice or no kernel takes the class.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fusedrnn

from . import _C
from ._ops.cells import CELLS

Call = Callable[[], object]
Clock = Callable[[Call, int], float]  # seconds that so many calls take

CHECKED_STEPS, CHECKED_ROWS = 6, 9  # more rows than any tile advances together, twice
BOUND = {False: 1e-3, True: 2e-2}  # with TF32: largest error by largest value
ROUNDS, CALLS = 3, 4  # the fastest round counts


def layer_class(mode: str, by_torch: bool) -> type[nn.RNNBase]:
    """The layer of a cell; ours, where torch.nn has none."""
    name = mode.partition("_")[0]
    found: type[nn.RNNBase] = getattr(nn if by_torch and CELLS[mode].has_torch else fusedrnn, name)
    return found


class Wrong(Exception):
    """A kernel computes wrong results."""


def steps(B: int) -> int:
    """Time steps of a timed call: enough to hide the cost of its start, at most 65536 rows."""
    return max(32, min(256, 65536 // B))


def cuda_clock(call: Call, calls: int) -> float:
    """Time on the device, from the start of the first call to the end of the last."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


class Candidate:
    """One kernel for one pass of a class of problems; the stepwise kernel runs the other pass."""

    def __init__(self, job: dict[str, Any], device: torch.device) -> None:
        self.job, self.device = job, device
        self.backward: bool = job["backward"]
        torch.backends.cudnn.allow_tf32 = job["tf32"]
        torch.manual_seed(0)
        H, options = job["H"], {"num_layers": job["L"], "bidirectional": job["D"] == 2}
        exact = layer_class(job["mode"], by_torch=True)
        self.exact = exact(H, H, dtype=torch.float64, device="cpu", **options)
        tried = layer_class(job["mode"], by_torch=job["kernel"] == "torch")
        self.module = tried(H, H, device=device, **options)
        self.module.load_state_dict(self.exact.state_dict())

    def force(self, wanted: bool) -> None:
        """Force the plan to this candidate if ``wanted``, else to the stepwise path."""
        by_tile = wanted and self.job["tile"] >= 0
        os.environ["FUSEDRNN_CUDA_TILE"] = str(self.job["tile"]) if by_tile else ""
        os.environ["FUSEDRNN_CUDA_KERNEL"] = "" if by_tile else "stepwise"

    def results(self, module: nn.Module, x: Tensor) -> list[Tensor]:
        """Outputs and states of the forward pass, or all gradients of the backward pass."""
        x = x.requires_grad_(self.backward)
        self.force(not self.backward)
        with torch.set_grad_enabled(self.backward):
            output, states = module(x)
        found = [output, *(states if isinstance(states, tuple) else [states])]
        if not self.backward:
            return found
        self.force(True)
        slopes = [torch.linspace(-1, 1, t.numel()).reshape(t.shape).to(t) for t in found]
        return list(torch.autograd.grad(found, [x, *module.parameters()], slopes))

    def check(self) -> None:
        """Raise Wrong unless the results are those of float64 on the CPU."""
        x = torch.randn(CHECKED_STEPS, min(self.job["B"], CHECKED_ROWS), self.job["H"])
        expected = self.results(self.exact, x.double())
        found = self.results(self.module, x.to(self.device))
        for a, b in zip(found, expected, strict=True):
            error = float((a.cpu() - b).abs().max() / b.abs().max())
            if not error <= BOUND[self.job["tf32"]]:
                raise Wrong(f"computes wrongly: {error:.1e} of the largest value off float64")

    def times(self, clock: Clock) -> dict[str, float]:
        """Microseconds a step and layer, with ("training") and without gradients kept."""
        T, B = steps(self.job["B"]), self.job["B"]
        x = torch.randn(T, B, self.job["H"], device=self.device, requires_grad=True)
        module = self.module
        self.force(not self.backward)

        def forward(training: bool) -> object:
            with torch.set_grad_enabled(training):
                return module(x)[0]

        calls: dict[str, Call] = {}
        if self.backward:
            output = module(x)[0]
            slope = torch.ones_like(output)
            wanted = [x, *module.parameters()]
            self.force(True)
            calls["training"] = lambda: torch.autograd.grad(
                output, wanted, slope, retain_graph=True
            )
        else:
            calls = {"training": lambda: forward(True), "inference": lambda: forward(False)}
        found = {}
        for purpose, call in calls.items():
            call()  # what the first call sets up is not timed
            seconds = min(clock(call, CALLS) for _ in range(ROUNDS))
            found[purpose] = seconds / CALLS / T / self.job["L"] * 1e6
        return found


def answer(job: dict[str, Any], device: torch.device, clock: Clock) -> dict[str, Any]:
    """The answer to a job."""
    try:
        candidate = Candidate(job, device)
        candidate.check()
        return {"step_us": candidate.times(clock)}
    except Wrong as error:
        return {"failed": str(error)}
    except (torch.OutOfMemoryError, ValueError) as error:
        return {"left_out": str(error).splitlines()[0]}
    except RuntimeError as error:
        return {"failed": str(error).splitlines()[0], "dead": not _lives(device)}


def _lives(device: torch.device) -> bool:
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True


def main(device: str, clock: Clock = cuda_clock) -> None:
    """Answer jobs until there are no more."""
    os.environ["FUSEDRNN_CUDA_CHECK"] = "0"  # kernels are checked here, against float64
    # Forget what is kept about the device: a kernel that was taken out before may be right by now.
    _C.set_experience_loader(lambda index: None)
    talk = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing else prints into the answers
    place = torch.device(device)
    torch.zeros(1, device=place)  # makes the CUDA context before the parent's time limit counts
    print(json.dumps({"ready": True}), file=talk, flush=True)
    for line in sys.stdin:
        said = answer(json.loads(line), place, clock)
        print(json.dumps(said), file=talk, flush=True)
        if said.get("dead"):
            return


if __name__ == "__main__":
    main(sys.argv[1])

"""What explain() answers, in fields and in words: how the layers of a module run on an input, and
why. Also the GPUs that it can plan for on a machine without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What a plan must know about a GPU: compute capability (90 for 9.0), multiprocessors, the most
# shared memory a block may have, and how many clusters of 1, 2, 4, 8 and 16 blocks run at once (0:
# none). One model for each architecture: T4, A100, A40, L40S, H200, B200, RTX 5090. The numbers of
# clusters are assumed here; a real device is asked.
GPUS: dict[str, dict[str, Any]] = {
    f"sm_{sm}": {
        "sm": sm,
        "multiprocessors": multiprocessors,
        "shared_bytes": kib * 1024,
        "clock_ghz": clock_ghz,
        "clusters": [multiprocessors, *clusters],
    }
    for sm, multiprocessors, kib, clock_ghz, clusters in [
        (75, 40, 64, 1.59, [0, 0, 0, 0]),
        (80, 108, 163, 1.41, [0, 0, 0, 0]),
        (86, 84, 99, 1.74, [0, 0, 0, 0]),
        (89, 142, 99, 2.49, [0, 0, 0, 0]),
        (90, 132, 227, 1.98, [66, 32, 16, 8]),
        (100, 148, 227, 1.96, [74, 36, 16, 8]),
        (120, 170, 99, 2.41, [0, 0, 0, 0]),
    ]
}


@dataclass(frozen=True)
class LayerPlan:
    """How one layer runs on a CPU. Sizes are in bytes; rows are the batch's, steps are time steps.

    Attributes:
        T, B, I, H, P, D: time steps, batch, input, hidden and projection size (0: none),
            directions.
        device: the device that the kernel runs on.
        kernel: the kernel's name.
        isa: the instruction set.
        threads: how many threads work.
        split: what the threads share out: "batch" (its rows), "hidden" (the hidden units),
            "directions" (half of the threads run each direction, at once), or "none".
        lanes: hidden units in a vector.
        panel: the block of weights that a core works on at a time.
        rows: batch rows that a core takes through that block together.
        stretch: time steps whose input products, or weight gradients, are made at a time.
        weights: whether the forward pass first packs the weights into panels, and how.
        workspace_bytes: scratch memory of a call.
        reserve_bytes: memory kept for backward.
        reason: why this kernel was chosen.
        rejected: the other candidates, each with the reason against it.
    """

    T: int
    B: int
    I: int  # noqa: E741 -- the field's symbol for the input size
    H: int
    P: int
    D: int
    device: str
    kernel: str
    isa: str
    threads: int
    split: str
    lanes: int
    panel: str
    rows: int
    stretch: int
    weights: str
    workspace_bytes: int
    reserve_bytes: int
    reason: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [
            _sizes(self),
            f"kernel     {self.kernel} ({self.device}, {self.isa}, {self.lanes} lanes): "
            f"{self.reason}",
            f"threads    {self.threads}, split: {self.split}",
            f"blocking   {self.panel}, {self.rows} rows, {self.stretch} steps a stretch, "
            f"weights {self.weights}",
            f"memory     {_bytes(self.workspace_bytes)} workspace, "
            f"{_bytes(self.reserve_bytes)} kept for backward",
        ]
        lines += [f"not taken  {candidate}: {reason}" for candidate, reason in self.rejected]
        return "\n  ".join(lines)


@dataclass(frozen=True)
class CudaPassPlan:
    """How one layer's recurrence runs on a GPU, forward or back.

    Attributes:
        kernel: "block" or "cluster" (all time steps in one launch, W_hh on chip, held by one
            block or split over several), "stepwise" (a matrix product and an element-wise
            kernel a step) or "torch" (torch.nn's own path, cuDNN).
        tile: the row of csrc/cuda/tiles.h that a block or cluster kernel is; -1 for another
            kernel, and then ``rows`` to ``blocks`` are 0.
        hidden: H as padded.
        cluster: blocks that share the hidden units.
        rows: batch rows that a block or cluster advances together.
        threads: threads of a block.
        registers: registers of a thread, at most.
        shared_bytes: shared memory of a block.
        blocks: blocks of one direction.
        chunk: time steps of one launch. The products of the next chunk (in backward: of the
            previous one) run beside it. 0 means all steps in one launch.
        step_us: microseconds for one time step of all rows and directions, with its share of the
            launches and of the products before and after the recurrence.
        recurrence_us: the part of step_us that the recurrence takes, as estimated.
        measured: whether ``step_us`` was measured on this GPU (``python -m fusedrnn tune``) for
            problems of this class; otherwise a model estimates it.
        reason: why this kernel was chosen.
        rejected: the other candidates, each with the reason against it.
    """

    kernel: str
    tile: int
    hidden: int
    cluster: int
    rows: int
    threads: int
    registers: int
    shared_bytes: int
    blocks: int
    chunk: int
    step_us: float
    recurrence_us: float
    measured: bool
    reason: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        how = "measured" if self.measured else "estimated"
        lines = [f"{self.kernel}, about {self.step_us:.2f} us a step ({how}): {self.reason}"]
        if self.tile >= 0:
            group = "block" if self.cluster == 1 else f"cluster of {self.cluster} blocks"
            lines.append(
                f"blocking   H padded to {self.hidden}, {_count(self.rows, 'row')} a {group}, "
                f"{_count(self.blocks, 'block')} a direction, {self.threads} threads, at most "
                f"{self.registers} registers each, {_bytes(self.shared_bytes)} shared memory"
            )
        if self.chunk:
            lines.append(
                f"chunks     {_count(self.chunk, 'step')} a launch, the products of its neighbour "
                "beside it"
            )
        others = 0  # kernels for another H, in the running but not close
        told: dict[str, list[str]] = {}
        for candidate, reason in self.rejected:
            other = "H<=" in candidate and f"H<={self.hidden}," not in candidate
            if other and reason.startswith(("estimated", "measured")):
                others += 1
            else:
                told.setdefault(reason, []).append(candidate)
        for reason, candidates in told.items():
            more = f" and {len(candidates) - 1} more" if len(candidates) > 1 else ""
            lines.append(f"not taken  {candidates[0]}{more}: {reason}")
        if others:
            kernels = _count(others, "kernel")
            lines.append(f"not taken  {kernels} made for other H: estimated to cost more")
        return "\n  ".join(lines)


@dataclass(frozen=True)
class CudaLayerPlan:
    """How one layer runs on a GPU: its sizes, the device, each pass, and in which precision.

    Attributes:
        T, B, I, H, P, D: time steps, batch, input, hidden and projection size (0: none),
            directions.
        device: the GPU and its limits, in words.
        precision: the type of the arithmetic, and whether the products are in TF32. They are if
            the GPU and torch's switch for RNNs (``torch.backends.cudnn.rnn.fp32_precision``,
            ``allow_tf32``) allow it.
        reserve_bytes: memory kept for backward (0 on torch.nn's path, which keeps its own).
        forward: how the forward pass runs.
        backward: how the backward pass runs; None where no gradients are kept.
    """

    T: int
    B: int
    I: int  # noqa: E741 -- the field's symbol for the input size
    H: int
    P: int
    D: int
    device: str
    precision: str
    reserve_bytes: int
    forward: CudaPassPlan
    backward: CudaPassPlan | None

    def __str__(self) -> str:
        theirs = self.forward.kernel == "torch"
        kept = "what cuDNN keeps" if theirs else f"{_bytes(self.reserve_bytes)} kept"
        lines = [
            _sizes(self),
            f"device     {self.device}",
            f"precision  {self.precision}",
            f"memory     {kept} for backward",
            f"forward    {self.forward}",
        ]
        if self.backward:
            lines.append(f"backward   {self.backward}")
        return "\n  ".join(lines)


@dataclass(frozen=True)
class Plan:
    """How a module runs on an input; prints in words.

    Attributes:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        dtype: of the input, or what autocast makes of it.
        packed: whether the input is a PackedSequence.
        training: whether gradients would be kept.
        layers: a plan for each, the lowest first; none where the definition runs.
        route: "kernels"; "definition": :mod:`fusedrnn.reference`, step by step in plain torch;
            "torch": torch.nn's own path, because the CUDA half was not built.
        reasons: why this route, and what vmap turns the call into; empty for a plain call.
    """

    mode: str
    dtype: str
    packed: bool
    training: bool
    layers: tuple[LayerPlan | CudaLayerPlan, ...]
    route: str = "kernels"
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        packed = ", packed" if self.packed else ""
        purpose = "forward and backward" if self.training else "forward only"
        lines = [f"{self.mode} {self.dtype}{packed}, {purpose}"]
        if self.route == "definition":
            lines.append("definition (fusedrnn.reference), step by step in plain torch")
        elif self.route == "torch":
            lines.append("torch.nn's own path")
        lines += [f"  because    {reason}" for reason in self.reasons]
        # Layers above the first are alike; show a run of equal ones once.
        first = 0
        for i, layer in enumerate(self.layers):
            if i + 1 < len(self.layers) and self.layers[i + 1] == layer:
                continue
            name = f"layer {first}" if first == i else f"layers {first}-{i}"
            lines.append(f"{name}: {layer}")
            first = i + 1
        return "\n".join(lines)


def _bytes(n: int) -> str:
    return f"{n / 1024:.1f} KiB" if n < 1 << 20 else f"{n / (1 << 20):.1f} MiB"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("s" if n > 1 else "")


def _sizes(layer: LayerPlan | CudaLayerPlan) -> str:
    projected = f" P{layer.P}" if layer.P else ""
    return f"T{layer.T} B{layer.B} I{layer.I} H{layer.H}{projected} D{layer.D}"

"""explain(): whose layers a model has; which kernel runs a layer on an input, and why.

The choice of a kernel is made in C++, by the same function that the kernels call; this only asks
it about each layer of a module and prints the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _binary, ops, transforms
from .functional import check_dim, rnn_mode
from .layers import Layers, layers_of

# What a plan must know of a GPU: compute capability (90 for 9.0), multiprocessors, the most shared
# memory a block may have, and how many clusters of 1, 2, 4, 8 and 16 blocks run at once (0: none).
# By architecture, of one model each: T4, A100, A40, L40S, H200, B200, RTX 5090. How many clusters
# is an assumption; on a device in hand it is asked.
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
_REASONS = {
    "block": "W_hh stays in each block for the whole sequence, and blocks wait for nobody",
    "cluster": "W_hh stays on chip, split over the blocks of a cluster, which exchange h each step",
    "stepwise": "a matrix product and an element-wise kernel a step",
    "torch": "torch.nn's own path, cuDNN",
}
_NATIVE = "cuDNN works in {dtype}; ours would convert it, and is not compared (estimate: float32's)"
_PRECISION = {
    "float32": "float32; products with all inputs as torch's TF32 switches say",
    "float64": "float64",
}
_TORCH = 1 << 3  # the bit of torch.nn's own path among those of ops.cuda_allowed()


@dataclass(frozen=True)
class LayerPlan:
    """How one layer runs on a CPU. Sizes in bytes; rows of the batch; steps of time.

    Attributes:
        T, B, I, H, P, D: time steps, batch, input, hidden and projection size (0: none),
            directions.
        device: the kernel's.
        kernel: its name.
        isa: the instruction set.
        threads: how many work.
        split: what they share out: "batch" (its rows), "hidden" (units), "directions" (both at
            once, by half of the threads each), "none".
        lanes: hidden units in a vector.
        panel: the block of weights a core works on.
        rows: batch rows that pass it together.
        stretch: steps whose weight gradients are summed at a time.
        weights: whether the forward pass packs the weights into panels first, and how.
        workspace_bytes: scratch of a call.
        reserve_bytes: what is kept for backward.
        reason: why this kernel.
        rejected: the other candidates, each with its reason.
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
        tile: of a block or cluster kernel, its row of the table in csrc/cuda/tiles.h; -1 for
            another kernel, and then ``rows`` to ``blocks`` are 0.
        hidden: H as padded.
        cluster: blocks that share the hidden units.
        rows: batch rows a block or cluster advances together.
        threads: of a block.
        registers: of a thread, at most.
        shared_bytes: shared memory of a block.
        blocks: those of one direction.
        chunk: time steps of a launch, the products for the next running beside it; 0: all in one.
        step_us: what one time step of all rows and directions is estimated to take, with its
            share of the launch, by a model that no measurement stands behind yet.
        measured: whether `step_us` was measured on this GPU, and not estimated.
        reason: why this kernel.
        rejected: the other candidates, each with its reason.
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
    measured: bool
    reason: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{self.kernel}, about {self.step_us:.2f} us a step (estimated): {self.reason}"]
        if self.tile >= 0:
            group = "block" if self.cluster == 1 else f"cluster of {self.cluster} blocks"
            lines.append(
                f"blocking   H padded to {self.hidden}, {_count(self.rows, 'row')} a {group}, "
                f"{_count(self.blocks, 'block')} a direction, {self.threads} threads, at most "
                f"{self.registers} registers each, {_bytes(self.shared_bytes)} shared memory"
            )
        others = 0  # kernels for another H, in the running but not close
        told: dict[str, list[str]] = {}
        for candidate, reason in self.rejected:
            other = "H<=" in candidate and f"H<={self.hidden}," not in candidate
            if other and reason.startswith("estimated"):
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
        precision: what is computed in; it matters for float16 and bfloat16.
        reserve_bytes: what is kept for backward (0 on torch.nn's path, which keeps its own).
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
    """How a module runs on an input; printed, it says it in words.

    Attributes:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        dtype: of the input, or what autocast makes of it.
        packed: whether the input is a PackedSequence.
        training: whether gradients would be kept.
        layers: a plan for each, the lowest first; none where the definition runs.
        route: "kernels"; "definition": :mod:`fusedrnn.reference`, step by step in plain torch;
            "torch.nn": its own path, because the CUDA half was not built.
        reasons: why, and what vmap makes of the call; empty for a plain one.
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
        elif self.route == "torch.nn":
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


@overload
def explain(module: nn.Module) -> Layers: ...
@overload
def explain(
    module: nn.Module,
    input: Tensor | PackedSequence,
    hx: Tensor | Sequence[Tensor] | None = None,
    *,
    gpu: str | Mapping[str, Any] | None = None,
) -> Plan: ...
def explain(
    module: nn.Module,
    input: Tensor | PackedSequence | None = None,
    hx: Tensor | Sequence[Tensor] | None = None,
    *,
    gpu: str | Mapping[str, Any] | None = None,
) -> Plan | Layers:
    """Which layers of a model are fusedrnn's; with an input, how one layer would run on it.

    ``explain(model)`` lists every recurrent layer of a model, whose it is, and what would change
    that. ``explain(layer, input)`` is the plan that ``layer(input, hx)`` would follow now; nothing
    is computed. The plan depends on whether gradients would be kept, on autocast and on the
    transforms of torch.func that it is called within, as far as their tensors tell; on a CPU also
    on torch.get_num_threads(), on a GPU on its limits, FUSEDRNN_CUDA_KERNEL and FUSEDRNN_CUDA_TILE.

    Args:
        module: any model; with an input, a fusedrnn layer or cell (or torch.nn's: what would
            replace it).
        input: as the module takes it; None for the list of layers. Default: None.
        hx: as the module takes it, or None; it matters only if it alone requires grad.
        gpu: plan for this GPU, wherever the tensors are and whether or not there is one: an
            architecture, one of "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100" and
            "sm_120" (with the limits of a common model), or a mapping of limits as
            ``fusedrnn.plan.GPUS`` holds them. Default: the device of ``input``.
    Returns:
        Without an input, :class:`~fusedrnn.layers.Layers`. With one, a
        :class:`~fusedrnn.plan.Plan`: for each layer of the stack a
        :class:`~fusedrnn.plan.LayerPlan` on a CPU, a :class:`~fusedrnn.plan.CudaLayerPlan` on a
        GPU. Printed, each says it in words.
    Raises:
        TypeError: a module that is not a recurrent one, or an input that is no sequence.
        RuntimeError: input of another size than the module takes.
        ValueError: input of a rank or dtype that the module does not take, a ``gpu`` of which too
            little is known, or the environment names a kernel that cannot run this.
    """
    if input is None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if hx is not None or gpu is not None:
            raise TypeError("explain plans for hx or a gpu with an input only: give one")
        return layers_of(module)
    mode, L, D, P = _stack(module)
    _check(module, mode, input)
    data = input.data if isinstance(input, PackedSequence) else input
    states = [hx] if isinstance(hx, Tensor) else list(hx or ())
    way = transforms.route([data, *states], [*module.parameters()])
    training = way.training
    batch_sizes: list[int] | None = None
    if isinstance(input, PackedSequence):
        batch_sizes = input.batch_sizes.tolist()
        T, B = len(batch_sizes), batch_sizes[0]
    elif isinstance(module, nn.RNNCellBase):
        T, B = 1, input.size(0) if input.dim() == 2 else 1
    else:
        T, B = (input.size(0), input.size(1)) if input.dim() == 3 else (input.size(0), 1)
        if input.dim() == 3 and module.batch_first:
            T, B = B, T
    H: int = module.hidden_size  # type: ignore[assignment]
    on_gpu = gpu is not None or data.is_cuda
    dtype = str(_dtype(data, "cuda" if on_gpu else data.device.type)).removeprefix("torch.")
    if data.is_cuda and gpu is None and not _binary.build_info()["cuda"]:
        missing = (_binary.cuda_missing(),)
        return Plan(mode, dtype, bool(batch_sizes), training, (), "torch.nn", missing)
    if way.definition:
        return Plan(mode, dtype, bool(batch_sizes), training, (), "definition", way.reasons)
    B *= way.folded
    batch_sizes = batch_sizes and [rows * way.folded for rows in batch_sizes]
    cuda = _Cuda(data, gpu, dtype) if on_gpu else None
    layers: list[LayerPlan | CudaLayerPlan] = []
    for i in range(L):
        width: int = D * (P or H) if i else module.input_size  # type: ignore[assignment]
        if cuda:
            sizes = {"T": T, "B": B, "I": width, "H": H, "P": P, "D": D}
            rows = sum(batch_sizes) if batch_sizes else None
            whole = isinstance(module, nn.RNNBase)
            layers.append(cuda.layer(mode, sizes, rows, training, whole))
            continue
        threads = torch.get_num_threads()
        low = all(weight.dtype == torch.bfloat16 for weight in module.parameters())
        plan = ops.explain(mode, dtype, T, B, width, H, P, D, batch_sizes, training, threads, low)
        plan["rejected"] = tuple((str(name), str(why)) for name, why in plan["rejected"])
        layers.append(LayerPlan(T=T, B=B, I=width, H=H, P=P, D=D, **plan))
    packed = batch_sizes is not None
    return Plan(mode, dtype, packed, training, tuple(layers), reasons=way.reasons)


def _check(module: nn.Module, mode: str, input: Any) -> None:
    """Raise what the module itself would for an input of such a type, rank or size."""
    packed, cell = isinstance(input, PackedSequence), isinstance(module, nn.RNNCellBase)
    if not isinstance(input, Tensor) and (cell or not packed):
        kinds = "a Tensor" if cell else "a Tensor or a PackedSequence"
        raise TypeError(f"input must be {kinds}, got {type(input).__name__}")
    if cell and input.dim() not in (1, 2):
        raise ValueError(f"Expected input to be 1D or 2D, got {input.dim()}D instead")
    if not (cell or packed):
        check_dim(mode, input.dim())
    size = (input.data if packed else input).size(-1)
    if size != module.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {module.input_size}, got {size}"
        )


def _gpu(device: torch.device, gpu: str | Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """A GPU in words, and its limits."""
    if gpu is None:
        index = torch.cuda.current_device() if device.index is None else device.index
        limits, name = ops.cuda_device(index), f"cuda:{index}"
    elif isinstance(gpu, str):
        if gpu not in GPUS:
            raise ValueError(f"gpu must be one of {', '.join(GPUS)} or a mapping, got {gpu!r}")
        limits, name = GPUS[gpu], "pretended"
    else:
        expected = next(iter(GPUS.values()))
        if not isinstance(gpu, Mapping):
            raise TypeError(f"gpu must be a name, a mapping or None, got {type(gpu).__name__}")
        if set(gpu) != set(expected):
            raise ValueError(f"gpu must have {', '.join(expected)}, got {', '.join(gpu)}")
        limits, name = dict(gpu), "pretended"
        if not all(isinstance(limits[key], int | float) for key in expected if key != "clusters"):
            raise TypeError(f"limits of a gpu must be numbers, got {limits}")
    kib = limits["shared_bytes"] / 1024
    return (
        f"{name}, sm_{limits['sm']}, {limits['multiprocessors']} multiprocessors, {kib:.0f} KiB "
        f"shared memory a block, {limits['clock_ghz']:.2f} GHz",
        limits,
    )


class _Cuda:
    """A stack's layers on a GPU. The operators choose torch.nn's path or ours for the stack as a
    whole, forward and backward; here the same is asked."""

    def __init__(self, input: Tensor, gpu: str | Mapping[str, Any] | None, dtype: str) -> None:
        self.device, self.limits = _gpu(input.device, gpu)
        pretended = gpu is not None
        self.cudnn = torch.backends.cudnn.enabled and (
            pretended or torch.cudnn_is_acceptable(input)
        )
        self.dtype = dtype
        self.half = dtype in ("float16", "bfloat16")
        self.allowed: int = ops.cuda_allowed()

    def layer(
        self, mode: str, sizes: dict[str, int], rows: int | None, training: bool, whole: bool
    ) -> CudaLayerPlan:
        """``rows`` of all steps, if packed; ``whole``: of a stack, not a cell, which stays ours."""
        problem: dict[str, Any] = {
            "mode": mode,
            "dtype": self.dtype,
            **sizes,
            "packed": rows is not None,
            "training": training,
            "device": self.limits,
        }
        allowed = self.allowed if whole and self.cudnn else self.allowed & ~_TORCH
        by_torch = bool(allowed & _TORCH) and ops.hands_to_torch(**problem, allowed=self.allowed)
        kernels = _TORCH if by_torch else allowed & ~_TORCH

        def one_pass(backward: bool) -> CudaPassPlan:
            plan = ops.cuda_plan(backward=backward, **problem, allowed=kernels)
            if by_torch and self.half:
                reason = _NATIVE.format(dtype=self.dtype)
                return CudaPassPlan(**plan | {"reason": reason, "rejected": ()})
            cheapest = ops.cuda_plan(backward=backward, **problem, allowed=allowed)
            reasons, names = dict(cheapest["rejected"]), dict(plan["rejected"])
            rejected = [(name, why) for name, why in reasons.items() if name in names]
            for name in names.keys() - reasons.keys():  # the cheapest of this pass, if not taken
                estimate = f"{cheapest['step_us']:.2f} us a step"
                rejected.append((name, f"estimated {estimate}, but both passes go one way"))
            if self.allowed & ~allowed:
                why = "does not take this input (or is switched off)" if whole else "has no cell"
                rejected = [(n, why if n == "cuDNN" else w) for n, w in rejected]
            reason = _REASONS[plan["kernel"]]
            if self.allowed in (1, 2, 4, 8):
                reason += "; FUSEDRNN_CUDA_KERNEL names it"
            elif self.allowed > 15:
                reason += "; FUSEDRNN_CUDA_TILE names it"
            return CudaPassPlan(**plan | {"reason": reason, "rejected": tuple(rejected)})

        if not self.half:
            precision = _PRECISION[self.dtype]
        else:
            precision = self.dtype + ("" if by_torch else ", computed in float32")
        N = sizes["T"] * sizes["B"] if rows is None else rows
        width = ops.reserve_width(mode, self.dtype, sizes["H"], sizes["P"], "cuda")
        kept = sizes["D"] * N * width * (8 if self.dtype == "float64" else 4)
        return CudaLayerPlan(
            **sizes,
            device=self.device,
            precision=precision,
            reserve_bytes=kept if training and not by_torch else 0,
            forward=one_pass(False),
            backward=one_pass(True) if training else None,
        )


def _dtype(input: Tensor, device: str) -> torch.dtype:
    """What autocast makes of the input's dtype, as the operators do."""
    applies = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if applies and input.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return input.dtype


def _stack(module: nn.Module) -> tuple[str, int, int, int]:
    """Mode, L, D and P of a recurrent module."""
    if isinstance(module, nn.RNNBase):
        D = 2 if module.bidirectional else 1
        return module.mode, module.num_layers, D, module.proj_size
    if isinstance(module, nn.RNNCell):
        return rnn_mode(module.nonlinearity), 1, 1, 0
    if isinstance(module, nn.RNNCellBase):
        return "LSTM" if isinstance(module, nn.LSTMCell) else "GRU", 1, 1, 0
    raise TypeError(
        f"module must be an RNN, LSTM, GRU or a cell, got {type(module).__name__}: "
        "explain(model) alone lists the layers of a model"
    )

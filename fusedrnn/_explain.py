"""explain(): whose layers a model has, or which kernel runs a layer on an input, and why.

C++ chooses the kernel. For each layer of a module this file asks the same function that the
operators call, and returns the answer as :mod:`fusedrnn.plan`'s classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _binary, ops
from ._ops.refusals import check_dim, rnn_mode
from ._ops.route import route
from .layers import Layers, layers_of
from .plan import GPUS, CudaLayerPlan, CudaPassPlan, LayerPlan, Plan


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
    """Say which layers of a model are fusedrnn's or, with an input, how one layer would run on it.

    ``explain(model)`` lists every recurrent layer of a model, whose it is, and what would change
    that. ``explain(layer, input)`` returns the plan that ``layer(input, hx)`` would follow now,
    and computes nothing. The plan depends on whether gradients would be kept, on autocast, and on
    the transforms of torch.func around the call, as far as the tensors show them. On a CPU it
    also depends on torch.get_num_threads(); on a GPU on its limits, on what was measured on it,
    on torch's switch for TF32 in RNNs, FUSEDRNN_CUDA_KERNEL and FUSEDRNN_CUDA_TILE.

    Args:
        module: any model; with an input, a fusedrnn layer or cell (or torch.nn's: then the plan
            is that of the fusedrnn layer in its place).
        input: as the module takes it; None for the list of layers. Default: None.
        hx: as the module takes it, or None; it matters only if nothing else requires grad.
        gpu: plan for this GPU, wherever the tensors are and whether or not there is one. Either
            an architecture, one of "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100" and
            "sm_120" (with the limits of a common model), or a mapping of limits like those in
            ``fusedrnn.plan.GPUS``. Default: the device of ``input``.
    Returns:
        Without an input, :class:`~fusedrnn.layers.Layers`. With one, a
        :class:`~fusedrnn.plan.Plan`: for each layer of the stack a
        :class:`~fusedrnn.plan.LayerPlan` on a CPU, a :class:`~fusedrnn.plan.CudaLayerPlan` on a
        GPU. Both print in words.
    Raises:
        TypeError: a module that is not a recurrent layer, or an input that is not a sequence.
        RuntimeError: an input of another size than the module takes.
        ValueError: an input of a rank or dtype that the module does not take, a ``gpu`` with
            limits missing, or an environment that names a kernel that cannot run this.
    """
    if input is not None:
        return _plan(module, input, hx, gpu)
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if hx is not None or gpu is not None:
        raise TypeError("explain plans for hx or a gpu with an input only: give one")
    return layers_of(module)


def _plan(
    module: nn.Module,
    input: Tensor | PackedSequence,
    hx: Tensor | Sequence[Tensor] | None,
    gpu: str | Mapping[str, Any] | None,
) -> Plan:
    mode, L, D, P = _stack(module)
    _check(module, mode, input)
    data = input.data if isinstance(input, PackedSequence) else input
    states = [hx] if isinstance(hx, Tensor) else list(hx or ())
    way = route([data, *states], [*module.parameters()])
    training = way.training
    T, B, batch_sizes = _extent(module, input)
    H: int = module.hidden_size  # type: ignore[assignment]
    on_gpu = gpu is not None or data.is_cuda
    dtype = str(_dtype(data, "cuda" if on_gpu else data.device.type)).removeprefix("torch.")
    if data.is_cuda and gpu is None and not _binary.build_info()["cuda"]:
        missing = (_binary.cuda_missing(),)
        return Plan(mode, dtype, bool(batch_sizes), training, (), "torch", missing)
    if way.definition:
        return Plan(mode, dtype, bool(batch_sizes), training, (), "definition", way.reasons)
    B *= way.folded
    batch_sizes = batch_sizes and [rows * way.folded for rows in batch_sizes]
    cuda = _Cuda(data, gpu, dtype) if on_gpu else None
    layers: list[LayerPlan | CudaLayerPlan] = []
    for i in range(L):
        width: int = D * (P or H) if i else module.input_size  # type: ignore[assignment]
        problem = {"mode": mode, "T": T, "B": B, "I": width, "H": H, "P": P, "D": D}
        problem |= {"packed": batch_sizes is not None, "training": training}
        if cuda:
            problem |= {"L": L, "top_I": D * (P or H) if L > 1 else width}
            layers.append(cuda.layer(module, problem, sum(batch_sizes) if batch_sizes else T * B))
            continue
        threads = torch.get_num_threads()
        weights = [*module.parameters()]
        low = bool(weights) and all(weight.dtype == torch.bfloat16 for weight in weights)
        if not weights:  # frozen: they have been packed
            problem["frozen"] = str(module._stored).removeprefix("torch.")
        plan = ops.explain(problem | {"dtype": dtype}, batch_sizes, threads, low)
        plan["rejected"] = tuple((str(name), str(why)) for name, why in plan["rejected"])
        layers.append(LayerPlan(T=T, B=B, I=width, H=H, P=P, D=D, **plan))
    packed = batch_sizes is not None
    return Plan(mode, dtype, packed, training, tuple(layers), reasons=way.reasons)


def _extent(module: nn.Module, input: Tensor | PackedSequence) -> tuple[int, int, list[int] | None]:
    """T and B, and the batch sizes of packed rows."""
    if isinstance(input, PackedSequence):
        batch_sizes: list[int] = input.batch_sizes.tolist()
        return len(batch_sizes), batch_sizes[0], batch_sizes
    if isinstance(module, nn.RNNCellBase):
        return 1, input.size(0) if input.dim() == 2 else 1, None
    if input.dim() == 2:
        return input.size(0), 1, None
    T, B = input.size(0), input.size(1)
    return (B, T, None) if module.batch_first else (T, B, None)


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


def _gpu(
    device: torch.device, gpu: str | Mapping[str, Any] | None
) -> tuple[str, dict[str, Any], int]:
    """A GPU in words, its limits, and its number: -1 if it is pretended."""
    index = -1
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
        index,
    )


class _Cuda:
    """A stack's layers on a GPU."""

    def __init__(self, input: Tensor, gpu: str | Mapping[str, Any] | None, dtype: str) -> None:
        self.device, self.limits, self.index = _gpu(input.device, gpu)
        pretended = gpu is not None
        self.cudnn = torch.backends.cudnn.enabled and (
            pretended or torch.cudnn_is_acceptable(input)
        )
        self.dtype = dtype
        self.tf32: bool = ops.rnn_takes_tf32()

    def precision(self, by_torch: bool) -> str:
        if self.dtype in ("float16", "bfloat16"):
            return self.dtype + ("" if by_torch else ", computed in float32")
        if self.dtype != "float32":
            return self.dtype
        if not self.tf32:
            return "float32 throughout, as torch's switch for RNNs asks"
        if self.limits["sm"] < 80:
            return "float32 throughout: the GPU has no TF32"
        return "float32; cuDNN's products in TF32" if by_torch else "float32; products in TF32"

    def no_torch(self, module: nn.Module) -> str:
        """Why torch.nn's path is out of the question; empty: it is not."""
        if not isinstance(module, nn.RNNBase):
            return "has no cell"
        return "" if self.cudnn else "does not take this input (or is switched off)"

    def layer(self, module: nn.Module, problem: dict[str, Any], rows: int) -> CudaLayerPlan:
        """``problem`` as _C.cuda_choice takes it but for what is known here; ``rows`` are those of
        all steps."""
        choice = ops.cuda_choice(
            problem | {"dtype": self.dtype, "tf32": self.tf32},
            self.limits,
            ops.cuda_restriction(),
            self.no_torch(module),
            self.index,
        )
        by_torch = choice["by_torch"]
        sizes = {name: problem[name] for name in ("T", "B", "I", "H", "P", "D")}
        width = ops.reserve_width(problem["mode"], self.dtype, sizes["H"], sizes["P"], "cuda")
        kept = sizes["D"] * rows * width * (8 if self.dtype == "float64" else 4)
        backward = choice["backward"]
        return CudaLayerPlan(
            **sizes,
            device=self.device,
            precision=self.precision(by_torch),
            reserve_bytes=kept if backward and not by_torch else 0,
            forward=CudaPassPlan(**choice["forward"]),
            backward=backward and CudaPassPlan(**backward),
        )


def _dtype(input: Tensor, device: str) -> torch.dtype:
    """What autocast makes of the input's dtype, as the operators do."""
    applies = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if applies and input.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return input.dtype


# torch.nn's cells do not say what they are.
_MODES: dict[type[nn.Module], str] = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}


def _stack(module: nn.Module) -> tuple[str, int, int, int]:
    """Mode, L, D and P of a recurrent module."""
    if isinstance(module, nn.RNNBase):
        D = 2 if module.bidirectional else 1
        return module.mode, module.num_layers, D, module.proj_size
    if isinstance(module, nn.RNNCell):
        return rnn_mode(module.nonlinearity), 1, 1, 0
    for kind, mode in _MODES.items():
        if isinstance(module, kind):
            return mode, 1, 1, 0
    if isinstance(module, nn.RNNCellBase) and hasattr(module, "mode"):
        return str(module.mode), 1, 1, 0
    raise TypeError(
        f"module must be an RNN, LSTM, GRU or a cell, got {type(module).__name__}: "
        "explain(model) alone lists the layers of a model"
    )

"""What kernels take by themselves on a GPU, by the profiler, and a time step of a recurrence."""

from __future__ import annotations

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import GRADIENTS, Call, Setting
from benchmarks.gpu_device import precision_of
from benchmarks.layers import CELLS, Layer
from benchmarks.results import Recurrence

STEP_US = 0.7  # aimed at for the recurrence of the Reuters layer, forward and backward each


def kernel_times(call: Call, device: torch.device, calls: int = 5) -> dict[str, float]:
    """Microseconds a call of each kernel (on the CPU: of each operator), by the profiler."""
    gpu = device.type == "cuda"
    call()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            call()
        if gpu:
            torch.cuda.synchronize()
    found = {}
    for event in profiler.key_averages():
        total = event.self_device_time_total if gpu else event.self_cpu_time_total
        if event.device_type.name == ("CUDA" if gpu else "CPU") and total > 0:
            found[event.key] = total / calls
    return found


def passes(layer: Layer, setting: Setting) -> dict[str, tuple[Call, Call]]:
    """Ours and torch.nn's call of the forward pass alone, as in training, and the backward pass."""
    x, slope = layer.inputs(setting)
    x.requires_grad_(layer.input_grad)

    def both(module: nn.Module) -> tuple[Call, Call]:
        y = module(x)[0]
        wanted = [*module.parameters(), *([x] if layer.input_grad else [])]
        return (
            lambda: (module(x)[0],),
            lambda: torch.autograd.grad(y, wanted, slope, retain_graph=True),
        )

    ours, theirs = (both(module) for module in layer.modules(setting))
    return {"forward": (ours[0], theirs[0]), "backward": (ours[1], theirs[1])}


def recurrences(layer: Layer, device: torch.device) -> list[Recurrence]:
    """What a time step costs in the kernels themselves, by pass."""
    found = []
    with precision_of("ieee"):
        for name, (ours, theirs) in passes(layer, Setting(device)).items():
            kernels = kernel_times(ours, device)
            own = sum(us for kernel, us in kernels.items() if "fusedrnn" in kernel)
            found.append(
                Recurrence(
                    cell=layer.cell,
                    shape=layer.shape,
                    step=name,
                    precision="ieee",
                    ours_us=own / layer.T,
                    torch_us=sum(kernel_times(theirs, device).values()) / layer.T,
                    target=STEP_US,
                    kernels=dict(sorted(kernels.items(), key=lambda item: -item[1])),
                )
            )
    return found


def reuters_layers() -> list[Layer]:
    return [
        Layer(group="Reuters layer", cell=cell, step=GRADIENTS, T=200, B=64, I=128, H=128)
        for cell in CELLS
    ]

"""The GPU of a run: what it is, what drives it, and the precisions it computes in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks import machine

# ieee and tf32 are what torch.backends.cudnn.allow_tf32 chooses between: torch's default is tf32.
DTYPES = {
    "ieee": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@contextmanager
def precision_of(name: str) -> Iterator[None]:
    """torch's switch for cuDNN, which both sides follow. Matrix products stay at torch's default,
    ieee; for bf16 and fp16 the switch stays at its default, or cuDNN would be slower."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name != "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def driver() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty without it."""
    fields = {
        "driver": "driver_version",
        "SM clock": "clocks.sm",
        "highest": "clocks.max.sm",
        "temperature": "temperature.gpu",
        "power": "power.draw",
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = told.stdout.splitlines()[0].split(", ")
    return dict(zip(fields, values, strict=True))


def described(device: torch.device) -> dict[str, str]:
    """The GPU and what drives it. Clocks are read at the call: right after work they are those of
    the work."""
    if device.type != "cuda":
        return {"name": f"rehearsal on {machine.cpu_name()}"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        **driver(),
    }

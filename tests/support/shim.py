"""How the shim is built, which runs CUDA kernels on a CPU (tests/cuda/host)."""

from __future__ import annotations

from fusedrnn.plan import GPUS
from support.paths import HOST, TESTS


def limits(gpu: dict[str, object]) -> str:
    """A row of GPUS as a cuda::Device is written."""
    values = ", ".join(map(str, gpu.values()))
    return "{" + values.replace("[", "{").replace("]", "}") + "}"


# The shim is watched by no sanitizer: its own accesses would count as those of the fibers it runs.
SHIM = [HOST / f"{part}.cpp" for part in ("device", "instructions", "launch", "scheduler")]
FLAGS = [
    *["-std=c++20", "-Wno-unknown-pragmas", f"-I{HOST}", f"-I{TESTS / 'kernels' / 'cpp'}"],
    f"-DFUSEDRNN_GPUS={', '.join(map(limits, GPUS.values()))}",
]

"""On PYTHONPATH, lets a program written for a GPU run where there is none: torch tells of one, what
it is asked to put there stays on the CPU, and layers are run by the CUDA half on the host
(torch_glue.cpp, named by FUSEDRNN_GLUE). For rehearsals of tests/gpu_check.sh and its programs.
Streams, graphs and memory are not there: whoever asks for one is told so by torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# What needs no GPU stays as it is: pip and what it starts.
PROGRAMS = ("cuda_core.py", "gpu_tiles.py", "gpu_profile.py", "gpu_machine.py")


def pretend() -> None:
    import torch
    from torch.overrides import TorchFunctionMode

    def here(value: Any) -> Any:
        """The CPU in place of the GPU."""
        named = isinstance(value, (str, torch.device)) and str(value).split(":")[0] == "cuda"
        return torch.device("cpu") if named else value

    class OnTheHost(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = {key: here(value) for key, value in (kwargs or {}).items()}
            return func(*map(here, args), **kwargs)

    OnTheHost().__enter__()
    told: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_name": "a GPU that is not there",
        "synchronize": None,
    }
    for name, value in told.items():
        setattr(torch.cuda, name, lambda *_, value=value: value)


def load() -> None:
    """The CUDA half on the host, in place of the CPU kernels."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import torch_glue_plugin  # noqa: F401

    from fusedrnn import ops, plan

    ops.cuda_device = lambda _: dict(plan.GPUS["sm_90"])  # type: ignore[assignment]


program = next((Path(a).name for a in sys.orig_argv[1:] if a.endswith(".py")), "")
if program in PROGRAMS or "get_device_name" in " ".join(sys.orig_argv):
    pretend()
    if program not in ("gpu_machine.py", "") and "FUSEDRNN_GLUE" in os.environ:
        load()

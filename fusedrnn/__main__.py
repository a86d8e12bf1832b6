"""``python -m fusedrnn`` prints what a bug report needs and checks that the installation works.
``python -m fusedrnn tune`` measures the GPU's kernels. ``python -m fusedrnn --cflags --libs``
prints what a C compiler needs to find ``fusedrnn.h`` and ``libfusedrnn_cpu.so``.

The exit status is 0 if a small LSTM agrees with torch.nn on every device, and 1 if not.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from . import LSTM, __version__, _binary, experience, explain, ops
from .tuning import main as tune

SETTINGS = (
    "FUSEDRNN_CPU_ISA",
    "FUSEDRNN_CPU_NARROW",
    "FUSEDRNN_CUDA_KERNEL",
    "FUSEDRNN_CUDA_TILE",
    "FUSEDRNN_CUDA_CHECK",
    "FUSEDRNN_CACHE",
    "FUSEDRNN_CUDA_CHUNK",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
TOLERANCE = 1e-5  # float32, values of order 1: thirty times the rounding of one step


def c_flags() -> dict[str, str]:
    """What a C compiler needs, by the option that asks for it."""
    package = Path(_binary.build_info()["file"]).parent
    library = shlex.quote(str(package / "lib"))
    return {
        "--cflags": f"-I{shlex.quote(str(package / 'include'))}",
        "--libs": f"-L{library} -lfusedrnn_cpu -Wl,-rpath,{library}",
    }


def _line(name: str, value: object) -> None:
    print(f"{name:<11}{value}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> None:
    info = _binary.build_info()
    _line("fusedrnn", f"{__version__}, C++ sources {info['sources']}")
    _line("binary", info["file"])
    _line("torch", f"{torch.__version__}, built against {info['torch']}")
    _line("python", f"{platform.python_version()}, built with {info['python']}")
    _line("compiler", info["compiler"])
    _line("system", f"{platform.platform()}, {'-'.join(platform.libc_ver())}")


def _cpu() -> None:
    _line("processor", _processor())
    _line("kernels", f"{ops.cpu_isa()}, of {', '.join(ops.cpu_isas())}")
    _line("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors")


def _cuda() -> None:
    info = _binary.build_info()
    if info["cuda"]:
        _line("CUDA half", f"CUDA {info['cuda_toolkit']} for {info['cuda_arches']}")
    else:
        _line("CUDA half", f"not built: {info['cuda_missing']}")
        if torch.version.cuda:
            _line("", f"`{_binary.cuda_remedy()}` builds it")
    if not torch.cuda.is_available():
        _line("GPUs", "torch sees none")
        return
    _line("cuDNN", torch.backends.cudnn.version())
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(index)
        memory = torch.cuda.get_device_properties(index).total_memory >> 30
        name = torch.cuda.get_device_name(index)
        _line(f"cuda:{index}", f"{name}, compute capability {major}.{minor}, {memory} GiB")
        _tuned(index)
        with torch.no_grad():
            plan = explain(LSTM(128, 128, device=device), torch.zeros(100, 64, 128, device=device))
        print("           LSTM T100 B64 I128 H128 would run so:")
        for line in str(plan).splitlines():
            print(f"             {line}")


def _tuned(index: int) -> None:
    known = experience.read(experience.key_of(index))
    if known is None:
        _line("", "kernels not measured: `python -m fusedrnn tune` does that")
        return
    _line("", f"{len(known.measured)} figures measured, {len(known.excluded)} kernels taken out")
    for (backward, tile), reason in known.excluded.items():
        _line("", f"kernel {tile} {'backward' if backward else 'forward'}: {reason}")


def _data() -> None:
    """Where the workloads look for the corpora: examples/data/fetch.py."""
    places = [
        Path(os.environ["FUSEDRNN_DATA"]) if "FUSEDRNN_DATA" in os.environ else None,
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusedrnn",
    ]
    for name, place in zip(("FUSEDRNN_DATA", "cache"), places, strict=True):
        found = "not set" if place is None else f"{place}{'' if place.is_dir() else ' (not there)'}"
        _line("data", f"{name}: {found}")


def _agrees(device: torch.device) -> bool:
    """Print and return whether outputs and gradients of a small LSTM are torch.nn's."""
    torch.manual_seed(0)
    ours = LSTM(16, 24, num_layers=2, bidirectional=True, device=device)
    theirs = nn.LSTM(16, 24, num_layers=2, bidirectional=True, device=device)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(12, 5, 16, device=device)
    results = []
    for lstm in (ours, theirs):
        output, (h_n, c_n) = lstm(x)
        loss = output.square().mean() + h_n.sum() + c_n.sum()
        gradients = torch.autograd.grad(loss, [*lstm.parameters()])
        scales = [max(1.0, float(g.abs().max())) for g in gradients]
        results.append([output, *(g / s for g, s in zip(gradients, scales, strict=True))])
    worst = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True))
    agrees = worst <= TOLERANCE
    verdict = "agrees with" if agrees else "DIFFERS from"
    _line("check", f"{device}: LSTM, forward and backward, {verdict} torch.nn (by {worst:.1e})")
    return agrees


def main(argv: Sequence[str] = ()) -> int:
    if argv and argv[0] == "tune":
        return tune(argv[1:])
    flags = c_flags()
    if argv and flags.keys() >= set(argv):
        print(" ".join(flags[option] for option in argv))
        return 0
    _versions()
    _cpu()
    _cuda()
    for name in SETTINGS:
        if name in os.environ:
            _line("setting", f"{name}={os.environ[name]}")
    _data()
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # TOLERANCE is float32's
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # _cuda has said already that the CUDA half is missing
        results = [_agrees(device) for device in devices]  # a list: every device is checked
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What gpu_check.sh needs of a machine. Prints the architectures of its GPUs, as
TORCH_CUDA_ARCH_LIST wants them; or one line that says what is missing, with exit status 2."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


def missing(reason: str) -> SystemExit:
    print(reason)
    return SystemExit(2)


def imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing(f"{sys.executable} has no {name}") from None


def check_setuptools() -> None:
    """pip without build isolation takes whatever version is there, and an older one fails on the
    licence in pyproject.toml with a message that names neither."""
    least = re.search(r"^MIN_SETUPTOOLS = (\d+)", SETUP.read_text("utf-8"), re.MULTILINE)
    assert least
    version = imported("setuptools").__version__
    if int(version.split(".")[0]) < int(least[1]):
        remedy = f"{sys.executable} -m pip install 'setuptools>={least[1]}'"
        raise missing(f"setuptools>={least[1]} is needed, {version} is installed: {remedy}")


def main() -> None:
    torch = imported("torch")
    if not torch.cuda.is_available():
        raise missing("there is no GPU: torch.cuda.is_available() is false")
    home = importlib.import_module("torch.utils.cpp_extension").CUDA_HOME
    if not (shutil.which("nvcc") or (home and shutil.which(str(Path(home, "bin", "nvcc"))))):
        raise missing("there is no nvcc: put it on PATH or set CUDA_HOME")
    check_setuptools()
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    print(";".join(f"{major}.{minor}" for major, minor in sorted(found)))


if __name__ == "__main__":
    main()

"""What csrc/cuda/launch.cuh and device.cu ask of CUDA's runtime, by one that counts: the attributes
of a kernel are set once for a device, and a GPU that tells no clock is taken for one of 1 GHz."""

from __future__ import annotations

from pathlib import Path

from support.commands import compiler, output_of
from support.paths import CSRC, HOST


def test_attributes_are_set_once_and_an_unknown_clock_is_bounded(tmp_path: Path) -> None:
    program = str(tmp_path / "launch_test")
    flags = ["-std=c++20", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread"]
    runtime = HOST / "runtime"
    source = str(runtime / "launch_test.cpp")
    output_of([*compiler(), *flags, f"-I{runtime}", f"-I{CSRC}", source, "-o", program])
    output_of([program])

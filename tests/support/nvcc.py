"""What nvcc makes of the CUDA half's sources; only its compiler is needed, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from support.commands import output_of
from support.once import once
from support.paths import CSRC

FLAGS = ["-std=c++20", "-O3", f"-I{CSRC}", "-Xcompiler=-Wall,-Wextra", "-Xptxas=-v"]


class Made(NamedTuple):
    said: str  # by ptxas, of each kernel
    ptx: str


def compiled(source: Path, arch: str, place: pytest.TempPathFactory) -> Made:
    """Machine code and PTX of a source for an architecture, without a warning."""

    def make(folder: Path) -> str:
        code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        where = ["--keep", f"--keep-dir={folder}", "-cubin", "-o", str(folder / "made.cubin")]
        command = ["nvcc", *FLAGS, "--Werror=all-warnings", code, *where]
        (folder / "said").write_text(output_of([*command, str(source)]))
        return str(folder)

    folder = Path(once(place, f"nvcc {source} {arch}", make))
    (ptx,) = folder.glob("*.ptx")
    return Made((folder / "said").read_text(), ptx.read_text())

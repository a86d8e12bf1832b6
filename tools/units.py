"""The files of csrc/ops, gathered in a few large translation units.

Reading torch's headers takes a compiler 8 to 23 s a file, and a unit reads them once: with GCC 12
the 20 files without Python take 46 s together, 230 s one by one. Hence no two files of a unit may
give the same name to different things, not even in anonymous namespaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

# Two of like size, for two cores, and the CUDA half. A file belongs to the first that fits.
UNITS = {
    "ops_cuda": r"csrc/ops/cuda/",
    "ops_python": r"csrc/ops/python",
    "ops": r"csrc/ops/",
}


def unit_of(source: str) -> str | None:
    return next((name for name, begins in UNITS.items() if re.match(begins, source)), None)


def gathered(sources: Iterable[str], folder: Path) -> list[str]:
    """`sources`, paths below the root, with units in the place of those of csrc/ops. A unit lies in
    `folder` and is written where it changes, so that ninja compiles what changed."""
    files: dict[str, list[str]] = {}
    kept = []
    for source in sources:
        if unit := unit_of(source):
            files.setdefault(unit, []).append(source)
        else:
            kept.append(source)
    return kept + [str(written(folder / f"{unit}.cpp", files[unit])) for unit in sorted(files)]


def operators(root: Path, folder: Path, cuda: bool) -> list[Path]:
    """The units of csrc/ops, with the CUDA half's or without."""
    glue = root / "csrc" / "ops" / "cuda"
    sources = [
        str(path.relative_to(root))
        for path in sorted(root.glob("csrc/ops/**/*.cpp"))
        if cuda or path.parent != glue
    ]
    return [Path(unit) for unit in gathered(sources, folder)]


def written(unit: Path, files: Iterable[str]) -> Path:
    text = "".join(f'#include "{file.removeprefix("csrc/")}"\n' for file in files)
    unit.parent.mkdir(parents=True, exist_ok=True)
    if not unit.exists() or unit.read_text("utf-8") != text:
        unit.write_text(text, "utf-8")
    return unit

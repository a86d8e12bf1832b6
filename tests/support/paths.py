"""Where things lie in the checkout."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
CSRC = ROOT / "csrc"
HOST = TESTS / "cuda" / "host"  # the shim that runs CUDA kernels on a CPU
GLUE = TESTS / "cuda" / "glue"  # CUDA's operators on the shim

"""Puts the checkout last on sys.path: `benchmarks` is importable from it, and an installed
fusedrnn, which has its compiled half, wins over the sources that lie here. Some libraries install
a `benchmarks` of their own (opacus, torchrl): here it is ours."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT] + [str(ROOT)]

_spec = importlib.util.spec_from_file_location("benchmarks", ROOT / "benchmarks" / "__init__.py")
assert _spec
assert _spec.loader
sys.modules["benchmarks"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["benchmarks"])

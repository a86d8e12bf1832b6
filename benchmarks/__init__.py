"""Benchmarks of fusedrnn beside torch.nn; see README.md for the method.

A script puts the checkout first on sys.path to find this package, because opacus and torchrl
install a `benchmarks` and an `examples` of their own. Then the checkout goes last: an installed
fusedrnn, which has its compiled half, wins over the sources that lie here.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_others = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
sys.path[:] = [str(_ROOT), *_others]
import examples as examples  # noqa: E402  # this one: the benchmarked models are in it

sys.path[:] = [*_others, str(_ROOT)]

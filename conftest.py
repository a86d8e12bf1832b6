"""Makes `benchmarks` the package of this checkout; its __init__.py leaves the checkout last on
sys.path, where an installed fusedrnn wins over the sources that lie here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import benchmarks as benchmarks

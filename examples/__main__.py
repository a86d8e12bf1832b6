"""``python -m examples SYSTEM``, from the root of a checkout; `--help` after it lists its options.

python -m examples reuters --cell lstm --steps 100 --impl fusedrnn torch
python -m examples all --quick      # every system, and the page of their results
python -m examples page DIR         # the page again, from results that are there
"""

import sys

from examples.driver.command import run

if __name__ == "__main__":
    run(sys.argv[1:])

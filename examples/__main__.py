"""``python -m examples SYSTEM``, from the root of a checkout; `--help` after it lists its options,
README.md has more commands."""

import sys

from examples.driver.command import run

if __name__ == "__main__":
    run(sys.argv[1:])

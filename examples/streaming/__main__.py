"""``python -m examples.streaming [WAV]``, from the root of a checkout; `--help` lists its
options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from examples.driver.errors import WorkloadError
from examples.streaming import listen


def run(argv: Sequence[str]) -> int:
    """0, or 1 with one line saying what is wrong."""
    try:
        listen.main(argv)
    except (WorkloadError, OSError) as error:
        print(f"streaming: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

"""``python -m examples.texts PROGRAM``, from the root of a checkout; `--help` after it lists its
options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from examples.driver.errors import WorkloadError
from examples.texts import conversions, d2l, swap

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "d2l": d2l.main,
    **{name: partial(swap.main, name) for name in swap.PROGRAMS},
    "conversions": conversions.main,
}
USAGE = f"""usage: python -m examples.texts {{{",".join(COMMANDS)}}} [options]
`--help` after one of them lists its options"""


def run(argv: Sequence[str]) -> int:
    """Runs the command that the first word names; 0, 1 with one line of what is wrong, or 2."""
    name, rest = argv[0] if argv else "", argv[1:]
    if name in ("-h", "--help"):
        print(USAGE)
    elif name not in COMMANDS:
        print(USAGE, file=sys.stderr)
        return 2
    else:
        try:
            COMMANDS[name](rest)
        except (WorkloadError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

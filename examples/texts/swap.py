"""Runs a program of the texts as it stands, and again with nothing changed but whose layers it
imports: the line ``from torch.nn import LSTM`` reads ``from fusedrnn import LSTM``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from examples.driver.errors import WorkloadError
from examples.driver.layers import IMPLEMENTATIONS, NAMES, fusedrnn
from examples.driver.options import positive
from examples.driver.tables import Table
from examples.texts.options import parsed

# Each with the epochs that it trains for.
PROGRAMS = {"reuters_program": 5, "simple_rnn": 20, "sentiment_lstm": 3}
TORCH = "from torch.nn import "


def source(name: str) -> str:
    return Path(__file__).with_name(f"{name}.py").read_text("utf-8")


def swapped(text: str) -> str:
    """A program's text with the layers imported from fusedrnn.

    Raises:
        WorkloadError: it does not have one line that imports them.
    """
    if text.count(f"\n{TORCH}") != 1:
        raise WorkloadError(f"expected one line '{TORCH}...', got {text.count(TORCH)}")
    return text.replace(f"\n{TORCH}", "\nfrom fusedrnn import ")


def program(name: str, impl: str) -> Any:
    """The program as a module, run with the layers of `impl`."""
    text = source(name)
    if impl == "fusedrnn":
        fusedrnn()  # fails with one line
        text = swapped(text)
    module = ModuleType(f"{name}_{impl}")
    exec(compile(text, f"{name}.py", "exec"), vars(module))
    return module


Row = tuple[Any, ...]  # what the program's `train` yields: names, counts, then figures


def compared(found: dict[str, list[Row]], columns: Sequence[str]) -> Table:
    """Each model's last epoch, by implementation, and how far its figures have ever been from the
    first implementation's."""
    first = next(iter(found))
    at = columns.index("epoch")
    models: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for impl, rows in found.items():
        for row in rows:
            models.setdefault(row[:at], {}).setdefault(impl, []).append(row)
    shown = [
        (NAMES[impl], *map(_shown, rows[-1]), f"{max(map(apart, by_impl[first], rows)):.0e}")
        for by_impl in models.values()
        for impl, rows in by_impl.items()
    ]
    title = f"Last epochs; difference: the largest of all epochs' figures from {NAMES[first]}'s"
    return Table(title, ("layers of", *columns, "difference"), shown)


def apart(row: Row, other: Row) -> float:
    """The largest difference of two rows' figures, as a share of the first's."""
    pairs = [(a, b) for a, b in zip(row, other, strict=True) if isinstance(a, float)]
    return float(max(abs(a - b) / abs(a) if a else abs(b) for a, b in pairs))


def _shown(value: object) -> str:
    return f"{value:.5f}" if isinstance(value, float) else str(value)


def trained(name: str, impl: str, say: Any, **options: Any) -> Iterator[Row]:
    """What a program says after each epoch; every row is told with the seconds it took."""
    start = time.perf_counter()
    for row in program(name, impl).train(**options):
        seconds = time.perf_counter() - start
        say("  ".join([NAMES[impl], *map(_shown, row), f"{seconds:.1f} s"]))
        yield row
        start = time.perf_counter()


def main(name: str, argv: Sequence[str]) -> None:
    """One program's command: trains it with each implementation's layers and compares."""
    about = str(program(name, "torch").__doc__)
    options = argparse.ArgumentParser(prog=f"python -m examples.texts {name}", description=about)
    add = options.add_argument
    add("--impl", choices=IMPLEMENTATIONS, nargs="+", default=["torch", "fusedrnn"])
    add("--epochs", type=positive, default=PROGRAMS[name])
    add("--limit", type=positive, help="train on and score that many rows; all when not given")
    args = parsed(options, argv)
    place = {"data_dir": args.data_dir, "synthetic": args.synthetic}
    found = {
        impl: [*trained(name, impl, print, epochs=args.epochs, limit=args.limit, **place)]
        for impl in args.impl
    }
    columns = program(name, "torch").COLUMNS
    print(f"\n{compared(found, columns).text()}")

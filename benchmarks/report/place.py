"""Puts what the results say into pages, or checks that a page says it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def between(text: str, markers: tuple[str, str] = (BEGIN, END)) -> tuple[str, str, str]:
    """(before and with the begin marker, the table, from the end marker on)."""
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} once, and then {end} once")
    head, rest = text.split(begin)
    table, tail = rest.split(end)
    return head + begin, table.strip("\n"), end + tail


def with_table(text: str, table: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    head, _, tail = between(text, markers)
    return f"{head}\n{table}\n{tail}"


def has_table(text: str, table: str, markers: tuple[str, str] = (BEGIN, END)) -> bool:
    return between(text, markers)[1] == table


def place(
    path: Path, table: str, markers: tuple[str, str], check: bool, command: Sequence[str]
) -> int:
    """Writes the table between the markers of a file; the exit status.

    Args:
        check: write nothing; 1 and a line unless the file has this table.
        command: what follows `python -m benchmarks` to write it.
    """
    return whole(path, with_table(path.read_text("utf-8"), table, markers), check, command)


def whole(path: Path, text: str, check: bool, command: Sequence[str]) -> int:
    """Writes the whole page, or checks it, as `place` does."""
    if not check:
        path.write_text(text, "utf-8")
    elif not path.is_file() or path.read_text("utf-8") != text:
        made = f"python -m benchmarks {shlex.join(command)}"
        print(f"{path} does not follow from the results; run: {made}", file=sys.stderr)
        return 1
    return 0


def beside(results: Path, text: str) -> int:
    """Writes the page beside its results, and prints it; the exit status."""
    results.with_suffix(".md").write_text(text, "utf-8")
    print(text)
    return 0

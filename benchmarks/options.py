"""What the command lines of several verbs have in common. Only the standard library is imported."""

from __future__ import annotations

import argparse
from pathlib import Path


def numbers(text: str) -> list[int]:
    """As in 1,2,5."""
    return [int(number) for number in text.split(",") if number]


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"python -m benchmarks {verb}", description=description)


def add_check(top: argparse.ArgumentParser) -> None:
    top.add_argument("--check", action="store_true", help="write nothing; fail unless it is so")


def measuring(verb: str, description: str) -> argparse.ArgumentParser:
    """For a verb that writes VERB.jsonl and from it VERB.md."""
    top = parser(verb, description)
    files = f"folder for {verb}.jsonl and {verb}.md"
    top.add_argument("--out", type=Path, required=True, help=files)
    top.add_argument("--quick", action="store_true", help="few rounds of short sequences")
    return top


def add_threads(top: argparse.ArgumentParser, usual: int) -> None:
    top.add_argument(
        "--threads",
        type=numbers,
        default=[usual],
        help="thread counts, each measured, as in 1,2 (default: torch's own)",
    )

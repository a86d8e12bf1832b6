"""All workloads by one command, each in a process of its own, and then the page of the results.

A process each, so that one's memory, threads and failures are none of another's: what fails is
named at the end, and the others have run.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples.driver import page
from examples.driver.errors import WorkloadError
from examples.driver.layers import IMPLEMENTATIONS
from examples.driver.options import common
from examples.driver.tables import Table
from examples.driver.workload import WORKLOADS

# Beside the workloads' own defaults: what the results page shows and a single run need not.
# torch.nn's packed LSTM is many times slower than its padded one: see imdb's --limit.
SEEDS = ["--seed", "0", "1", "2"]
FULL = {
    "reuters": SEEDS,
    "imdb": ["--layout", "padded", *SEEDS],
    "seq2seq": SEEDS,
    "memory": SEEDS,
    "streaming": SEEDS,
}


def commands(argv: Sequence[str] | None) -> tuple[dict[str, list[str]], Path]:
    """How each chosen workload is started, and where all write to; exits on a bad option."""
    parser = common("all", "Train all workloads, and write the results page.", "all --quick")
    parser.set_defaults(impl=list(IMPLEMENTATIONS))
    full = parser.add_argument("--full", action="store_true", help="the published sizes")
    only = parser.add_argument("--only", nargs="+", choices=WORKLOADS, help="these; else all")
    args = parser.parse_args(argv)
    if args.quick == args.full:
        parser.error("one of the arguments --quick --full is required")
    words = ["--impl", *args.impl]
    for option, value in vars(args).items():
        flag = f"--{option.replace('_', '-')}"
        if option in (full.dest, only.dest, "impl") or value in (None, False):
            continue
        words += [flag] if value is True else [flag, str(value)]
    start = [sys.executable, "-m", "examples"]
    return {
        name: [*start, name, *words, *(FULL.get(name, []) if args.full else [])]
        for name in WORKLOADS
        if name in (args.only or WORKLOADS)
    }, args.out


def run(words: Sequence[str]) -> int:
    """The exit status of a command that has the terminal; after Ctrl-C it ends in its own way."""
    with subprocess.Popen(words) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m examples all``; after Ctrl-C a KeyboardInterrupt names what is done."""
    chosen, out = commands(argv)
    rows: list[tuple[str, ...]] = []
    passed: list[str] = []
    try:
        for number, (name, words) in enumerate(chosen.items(), 1):
            print(f"\n[{number}/{len(chosen)}] {shlex.join(words)}", flush=True)
            start = time.perf_counter()
            status = run(words)
            passed += [] if status else [name]
            ended = f"failed, status {status}" if status else "passed"
            rows.append((name, ended, f"{time.perf_counter() - start:.0f} s"))
    except KeyboardInterrupt:
        done = ", ".join(passed) or "none"
        raise KeyboardInterrupt(f"finished before: {done}; --only runs the others") from None
    print(f"\n{Table('Workloads', ('system', 'ended', 'time'), rows).text()}")
    if passed:
        page.write(out, None, check=False)
        print(f"written: {out / page.PAGE}")
    failed = [name for name in chosen if name not in passed]
    if failed:
        raise WorkloadError(f"{len(failed)} of {len(chosen)} failed: {', '.join(failed)}")

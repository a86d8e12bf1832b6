"""All training workloads by one command, each in a process of its own, and then the results page.

A process each, so that one's memory, threads and failures are none of another's: what fails is
named at the end, and the others have run.

    python benchmarks/workloads/suite.py --quick    # reduced size: under 10 minutes on 2 cores
    python benchmarks/workloads/suite.py --full
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import page
from benchmarks.workloads import common
from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.summary import Table

PAGE = "results.md"
# Beside the workloads' own defaults: what the results page shows and a single run need not.
# torch.nn's packed LSTM would take 40 minutes an epoch of IMDB: see imdb.py --limit.
FULL = {"reuters": ["--seed", "0", "1", "2"], "imdb": ["--layout", "padded"]}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train all workloads, one after the other, and write the results page.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="reduced size")
    size.add_argument("--full", action="store_true", help="the sizes of the published results")
    add("--only", nargs="+", choices=page.WORKLOADS, help="these workloads; all when not given")
    add(
        "--impl",
        nargs="+",
        choices=common.IMPLEMENTATIONS,
        default=list(common.IMPLEMENTATIONS),
        help="whose layers",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--threads", type=common.positive, help="CPU threads; torch's own choice when not given")
    add("--data-dir", help="where the data is; see benchmarks/workloads/fetch.py for the others")
    add("--synthetic", action="store_true", help="random data of the same shape: for timing only")
    add("--out", type=Path, default=Path("runs"), help=f"directory for results and {PAGE}")
    add("--checkpoints", type=Path, help="directory to save every training in, after each epoch")
    add("--resume", action="store_true", help="go on from what is in --checkpoints")
    return parser


def command(name: str, args: argparse.Namespace) -> list[str]:
    """How the workload of that name is started."""
    words = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--impl", *args.impl]
    for option in ("device", "threads", "data_dir", "out", "checkpoints"):
        value = getattr(args, option)
        if value is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    words += [f"--{flag}" for flag in ("quick", "synthetic", "resume") if getattr(args, flag)]
    return words + (FULL.get(name, []) if args.full else [])


def run(words: Sequence[str]) -> int:
    """The exit status of a command that has the terminal; after Ctrl-C it ends in its own way."""
    with subprocess.Popen(words) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        WorkloadError: a workload failed; the others have run.
        KeyboardInterrupt: after Ctrl-C; its text names what is done.
    """
    args = options().parse_args(argv)
    chosen = [name for name in page.WORKLOADS if name in (args.only or page.WORKLOADS)]
    rows: list[tuple[str, ...]] = []
    passed: list[str] = []
    try:
        for number, name in enumerate(chosen, 1):
            words = command(name, args)
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
        try:
            page.run(args.out, args.out / PAGE, None, check=False)
        except ValueError as error:
            raise WorkloadError(str(error)) from error
        print(f"written: {args.out / PAGE}")
    failed = [name for name in chosen if name not in passed]
    if failed:
        raise WorkloadError(f"{len(failed)} of {len(chosen)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    common.run(main)

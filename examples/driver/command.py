"""The command line that every workload has: options, training, results, and failure.

Whatever a user can mend ends in one line on stderr and a nonzero status; results are written
whole, at the end, or not at all. Of several processes, the first prints and writes.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from examples.driver import machine, options, page, parallel, plots, results, suite, training
from examples.driver.checkpoint import Checkpoints
from examples.driver.errors import WorkloadError
from examples.driver.layers import fusedrnn
from examples.driver.workload import WORKLOADS, Group, Job, Workload, workload

NOTHING = "no results were written"  # outside of fit, which says what is kept
QUICK = "\n--quick: small models, few epochs; that it runs is true, its accuracies teach nothing"
USAGE = f"""usage: python -m examples {{{",".join((*WORKLOADS, "all", "page"))}}} [options]
`--help` after one of them lists its options"""


def prepare(args: argparse.Namespace, *, shares: bool = False) -> None:
    """Applies ``--threads``, joins the other processes where the workload `shares` its batches
    between them, sets ``args.device`` to this process's, and fails now rather than after training
    if there is no place to write to."""
    for option, value in vars(args).items():
        if isinstance(value, list):  # what is named twice would write one file twice
            setattr(args, option, list(dict.fromkeys(value)))
    if parallel.expected() and not shares:
        raise WorkloadError("this workload is one process, got several: start it without torchrun")
    if args.resume and not args.checkpoints:
        raise WorkloadError("--resume needs --checkpoints, the directory to go on from")
    if args.threads:
        torch.set_num_threads(args.threads)
    for option, directory in (("--out", args.out), ("--checkpoints", args.checkpoints)):
        if directory is not None:
            _try_to_write(option, directory)
    args.device = parallel.start(args.device)


def _try_to_write(option: str, directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise WorkloadError(f"cannot write to {option} {directory}: {error.strerror}") from error


class Console:
    """Prints past the progress bar; every line of a synthetic run says so."""

    def __init__(self, synthetic: bool) -> None:
        self.prefix = "synthetic | " if synthetic else ""

    def __call__(self, text: str = "") -> None:
        if parallel.processes().leader:
            for line in text.splitlines() or [""]:
                tqdm.write(self.prefix + line, file=sys.stdout)


def train(chosen: Workload, argv: Sequence[str]) -> None:
    """The command of one workload; after Ctrl-C a KeyboardInterrupt says what is kept."""
    args = options.parser(chosen).parse_args(argv)
    prepare(args, shares=chosen.shares)
    say = Console(args.synthetic)
    job = chosen.configs(args)
    first, *lines = job.lines
    say("\n".join([f"data: {job.source}, {first}", *lines]))
    # With one --impl the files do not name it, so that the other goes on from them.
    files = args.checkpoints and Checkpoints(args.checkpoints, args.resume, len(args.impl) > 1)
    runs: list[dict[str, Any]] = []
    for group in chosen.build(job):
        if group.title:
            say(f"\n{group.title}: {group.runs[0].parameters:,} parameters{group.more}")
        _train_group(chosen, group, say, getattr(args, "log_every", chosen.every), files)
        runs += [run.record(**chosen.ended(job, group, run, say)) for run in group.runs]
    if parallel.processes().leader:
        finish(chosen, job, runs, say)


def _train_group(
    chosen: Workload, group: Group, say: Console, every: int, files: Checkpoints | None
) -> None:
    def report(run: training.Run, number: int, epoch: training.Epoch) -> None:
        due = number % every == 0 or number == group.epochs
        line = chosen.told(run, number, epoch, group.epochs) if due else ""
        if line:
            say(line)

    fit = partial(training.fit, epochs=group.epochs, report=report, checkpoints=files)
    chosen.run(group, fit, say)


def finish(chosen: Workload, job: Job, runs: list[dict[str, Any]], say: Console) -> None:
    """Writes the results, draws their plots, and prints what they say."""
    name = options.stem(chosen, vars(job.args))
    stem = Path(job.args.out) / name
    path = stem.with_name(f"{name}.jsonl")
    results.write(path, header(chosen.name, job), {"runs": runs, **job.extra})
    record = results.read(path)
    charts = plots.readable(chosen.draw(record))
    for chart in charts:
        chart.write(chart.path(stem), say.prefix)
    say("\n" + chosen.summarise(record).console())
    if job.args.quick:
        say(QUICK)
    say("\nwritten: " + ", ".join(map(str, [path, *(chart.path(stem) for chart in charts)])))


def header(name: str, job: Job) -> dict[str, Any]:
    """How the runs were made: the first line of the results."""
    args, config = job.args, job.config
    on_gpu = args.device.type == "cuda"
    return {
        "workload": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "options": {key: value for key, value in vars(args).items() if key not in options.PLACES},
        "torch": torch.__version__,
        "fusedrnn": fusedrnn().__version__ if "fusedrnn" in args.impl else None,
        "machine": platform.machine(),
        "cpu": machine.cpu_name(),
        "device": torch.cuda.get_device_name(args.device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "processes": parallel.processes().size,
        "data": Path(job.source).name,
        "config": (
            {key: asdict(entry) for key, entry in config.items()}
            if isinstance(config, dict)
            else asdict(config)
        ),
        **job.facts,
    }


def dispatch(argv: Sequence[str]) -> None:
    """The command that the first word names, with the others as its options."""
    name, rest = argv[0] if argv else "", list(argv[1:])
    if name == "all":
        suite.main(rest)
    elif name == "page":
        page.main(rest)
    elif name in WORKLOADS:
        train(workload(name), rest)
    elif name in ("-h", "--help"):
        print(USAGE)
    else:
        print(USAGE, file=sys.stderr)
        parallel.end(2)


def run(argv: Sequence[str]) -> NoReturn:
    """Runs `dispatch` and exits: 0, 1 with one line saying what is wrong, or 130 after Ctrl-C."""
    name = argv[0] if argv else ""
    try:
        dispatch(argv)
        parallel.stop()
    except (WorkloadError, OSError) as error:
        _end(1, f"{name}: {error}")
    except KeyboardInterrupt as error:
        _end(130, f"{name}: interrupted, {error.args[0] if error.args else NOTHING}")
    except RuntimeError:
        if parallel.first_to_fail():
            raise
        parallel.end(1)  # a process whose peer ended
    parallel.end(0)


def _end(status: int, message: str) -> NoReturn:
    if parallel.first_to_fail():
        print(message, file=sys.stderr)
    parallel.end(status)

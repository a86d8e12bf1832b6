"""What the workloads' command lines share: options, implementation, output, results, failure.

Whatever a user can mend ends in one line on stderr and a nonzero status; results are written
whole, at the end, or not at all. Of several processes, the first prints and writes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import machine
from benchmarks.workloads import parallel
from benchmarks.workloads.checkpoint import Checkpoints
from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.fetch import REPOSITORY, replacing
from benchmarks.workloads.summary import Summary, plot_path

CELLS = ("rnn", "gru", "lstm")
IMPLEMENTATIONS = ("fusedrnn", "torch")
NOTHING = "no results were written"  # outside of fit, which says what is kept
Layer = Callable[..., nn.RNNBase]  # called as the constructors of torch.nn's layers


def layer_class(cell: str, impl: str) -> Layer:
    """The RNN, GRU or LSTM class of ``fusedrnn`` or of ``torch.nn``.

    Raises:
        WorkloadError: fusedrnn cannot be imported.
    """
    module = torch.nn if impl == "torch" else _fusedrnn()
    layer: Layer = getattr(module, cell.upper())
    return layer


def _fusedrnn() -> Any:
    # After a plain `pip install .` the checkout's own fusedrnn/ has no extension, so the
    # installed package goes first; for an editable install the two are the same.
    checkout = [p for p in sys.path if Path(p or os.curdir).resolve() == REPOSITORY]
    sys.path[:] = [p for p in sys.path if p not in checkout] + checkout[:1]
    try:
        return importlib.import_module("fusedrnn")
    except ImportError as error:
        raise WorkloadError(
            f"fusedrnn cannot be imported ({error}): pip install . or use --impl torch"
        ) from error


def count_parameters(model: nn.Module) -> int:
    """The number of trainable values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class _Parser(argparse.ArgumentParser):
    """Of several processes, the first says what is wrong with the options."""

    def error(self, message: str) -> NoReturn:
        if not parallel.first_to_fail():
            sys.exit(2)
        super().error(message)


def parser(description: str, *, epochs: int, cells: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every workload has.

    Args:
        epochs: at full size, for the help text; `epochs` below chooses.
        cells: the cells of this workload.
    """
    options = _Parser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = options.add_argument
    add(
        "--impl",
        choices=IMPLEMENTATIONS,
        nargs="+",
        default=["fusedrnn"],
        help="whose layers; both are trained in turn, epoch by epoch, so that their times compare",
    )
    add("--cell", choices=cells, nargs="+", default=list(cells), help="which cells, in turn")
    add("--device", type=_device, default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--threads", type=positive, help="CPU threads; torch's own choice when not given")
    add(
        "--seed",
        type=int,
        nargs="+",
        default=[0],
        help="seeds of the parameters, the batches and dropout; a training for each",
    )
    add("--epochs", type=positive, help=f"passes over the data; {epochs} at full size")
    add("--quick", action="store_true", help="reduced size: under a minute on two cores")
    add("--data-dir", help="where the data is; see benchmarks/workloads/fetch.py for the others")
    add("--synthetic", action="store_true", help="random data of the same shape: for timing only")
    add("--out", type=Path, default=Path("runs"), help="directory for the JSON and the plots")
    add("--checkpoints", type=Path, help="directory to save every training in, after each epoch")
    add("--resume", action="store_true", help="go on from what is in --checkpoints")
    return options


def epochs(args: argparse.Namespace, full: int, quick: int) -> int:
    """``--epochs``; when not given, `quick` with ``--quick`` and else `full`."""
    return args.epochs or (quick if args.quick else full)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text} cannot be used: {reason}") from error
    return device


def prepare(args: argparse.Namespace, *, shares: bool = False) -> None:
    """Applies ``--threads``, joins the other processes, sets ``args.device`` to this process's,
    and fails now rather than after training if there is no place to write to.

    Args:
        shares: whether this workload's updates share their batches between processes.
    Raises:
        WorkloadError: ``--out`` or ``--checkpoints`` cannot be written, or torchrun started
            several processes of a workload that is one.
    """
    for option in ("impl", "cell", "seed"):  # what is named twice would write one file twice
        setattr(args, option, list(dict.fromkeys(getattr(args, option))))
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


def checkpoints(args: argparse.Namespace) -> Checkpoints | None:
    """Where this command's runs are saved; None without ``--checkpoints``.

    With one ``--impl`` the files do not name it, so that the other goes on from them; with both,
    their names end in it.
    """
    if args.checkpoints is None:
        return None
    return Checkpoints(args.checkpoints, args.resume, per_impl=len(args.impl) > 1)


class Console:
    """Prints past the progress bar; every line of a synthetic run says so."""

    def __init__(self, synthetic: bool) -> None:
        self.prefix = "synthetic | " if synthetic else ""

    def __call__(self, text: str = "") -> None:
        if parallel.processes().leader:
            for line in text.splitlines() or [""]:
                tqdm.write(self.prefix + line, file=sys.stdout)


def stem(workload: str, args: argparse.Namespace) -> Path:
    """The path of this command's result files, without their suffix."""
    words = [workload, *args.impl, *getattr(args, "layout", [])]
    if getattr(args, "limit", None) and not args.quick:
        words.append(f"first{args.limit}")
    words += [mark for mark in ("quick", "synthetic") if getattr(args, mark)]
    return Path(args.out) / "-".join(words)


def write_results(
    path: Path, args: argparse.Namespace, *, workload: str, **results: Any
) -> dict[str, Any]:
    """Writes one JSON file, how the runs were made and then `results`; returns what it holds."""
    places = ("out", "checkpoints", "resume", "data_dir")  # where files lie makes no figure
    ours = _fusedrnn().__version__ if "fusedrnn" in args.impl else None
    record = {
        "workload": workload,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "options": {key: value for key, value in vars(args).items() if key not in places},
        "torch": torch.__version__,
        "fusedrnn": ours,
        "machine": platform.machine(),
        "cpu": machine.cpu_name(),
        "device": (
            torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "cpu"
        ),
        "threads": torch.get_num_threads(),
        "processes": parallel.processes().size,
        **results,
    }
    text = json.dumps(record, indent=1, default=str) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
    read: dict[str, Any] = json.loads(text)
    return read


def finish(
    args: argparse.Namespace,
    say: Console,
    summary: Callable[[dict[str, Any]], Summary],
    record: Mapping[str, Any],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """Writes the results and draws their plots, and prints what they say.

    Args:
        summary, draw: the workload's; both work on the JSON file's record alone.
        record: "workload", its name, and its results.
    """
    if not parallel.processes().leader:
        return
    path = stem(record["workload"], args)
    written = write_results(path.with_suffix(".json"), args, **record)
    draw(written, path)
    found = summary(written)
    say("\n" + found.console())
    plots = (str(plot_path(path, suffix)) for suffix, _ in found.plots)
    say("\nwritten: " + ", ".join([f"{path}.json", *plots]))


def run(main: Callable[[], None]) -> NoReturn:
    """Runs `main` and exits: 0, 1 with one line saying what is wrong, or 130 after Ctrl-C."""
    program = Path(sys.argv[0]).stem
    try:
        main()
        parallel.stop()
    except (WorkloadError, OSError) as error:
        _end(1, f"{program}: {error}")
    except KeyboardInterrupt as error:
        _end(130, f"{program}: interrupted, {error.args[0] if error.args else NOTHING}")
    except RuntimeError:
        if parallel.first_to_fail():
            raise
        parallel.end(1)  # a process whose peer ended
    parallel.end(0)


def _end(status: int, message: str) -> NoReturn:
    if parallel.first_to_fail():
        print(message, file=sys.stderr)
    parallel.end(status)

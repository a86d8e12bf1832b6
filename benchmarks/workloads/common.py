"""What both workloads' command lines share: options, implementation, output, results, failure.

Whatever a user can mend ends in one line on stderr and a nonzero status; results are written
whole, at the end, or not at all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.fetch import REPOSITORY, replacing

CELLS = ("rnn", "gru", "lstm")
IMPLEMENTATIONS = ("fusedrnn", "torch")
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


def parser(description: str, *, epochs: int, cells: Sequence[str]) -> argparse.ArgumentParser:
    """The options that both workloads have; `cells` are the cells of this workload."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = options.add_argument
    add("--impl", choices=IMPLEMENTATIONS, default="fusedrnn", help="whose layers")
    add("--cell", choices=cells, nargs="+", default=list(cells), help="which cells, in turn")
    add("--device", type=_device, default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--threads", type=positive, help="CPU threads; torch's own choice when not given")
    add("--seed", type=int, default=0, help="seed of the parameters, the batches and dropout")
    add("--epochs", type=positive, default=epochs, help="passes over the data")
    add("--data-dir", help="where the data is; see benchmarks/workloads/fetch.py for the others")
    add("--synthetic", action="store_true", help="random data of the same shape: for timing only")
    add("--out", type=Path, default=Path("runs"), help="directory for the JSON and the plot")
    return options


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


def prepare(args: argparse.Namespace) -> None:
    """Applies ``--threads``, and fails now rather than after training if ``--out`` is no place.

    Raises:
        WorkloadError: ``--out`` cannot be written.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.out):
            pass
    except OSError as error:
        raise WorkloadError(f"cannot write to --out {args.out}: {error.strerror}") from error


class Console:
    """Prints past the progress bar; every line of a synthetic run says so."""

    def __init__(self, synthetic: bool) -> None:
        self.prefix = "synthetic | " if synthetic else ""

    def __call__(self, text: str = "") -> None:
        for line in text.splitlines() or [""]:
            tqdm.write(self.prefix + line, file=sys.stdout)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`rows` under `head`, every column as wide as its widest entry and right-aligned."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(entry.rjust(width) for entry, width in zip(line, widths, strict=True))
        for line in lines
    )


def stem(workload: str, args: argparse.Namespace) -> Path:
    """The path of this run's result files, without their suffix."""
    synthetic = "-synthetic" if args.synthetic else ""
    return Path(args.out) / f"{workload}-{args.impl}{synthetic}"


def write_results(path: Path, args: argparse.Namespace, **results: Any) -> None:
    """Writes one JSON file: how the run was made, then `results`."""
    record = {
        "options": {key: value for key, value in vars(args).items() if key != "out"},
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": (
            torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "cpu"
        ),
        "threads": torch.get_num_threads(),
        **results,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, default=str) + "\n", "utf-8")


def run(main: Callable[[], None]) -> NoReturn:
    """Runs `main` and exits: 0, 1 with one line saying what is wrong, or 130 after Ctrl-C."""
    program = Path(sys.argv[0]).stem
    try:
        main()
    except (WorkloadError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted, nothing was written", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)

"""The options that every workload has, and what their values may be."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from examples.driver import parallel
from examples.driver.layers import IMPLEMENTATIONS
from examples.driver.workload import Workload

Sizes = TypeVar("Sizes")  # a dataclass with epochs


class Parser(argparse.ArgumentParser):
    """Of several processes, the first says what is wrong with the options."""

    def error(self, message: str) -> NoReturn:
        if not parallel.first_to_fail():
            sys.exit(2)
        super().error(message)


def parser(workload: Workload) -> Parser:
    """The options of one workload."""
    found = common(f"python -m examples {workload.name}", workload.about)
    add = found.add_argument
    cells = workload.cells
    add("--cell", choices=cells, nargs="+", default=list(cells), help="which cells, in turn")
    seeds = "seeds of the parameters, the batches and dropout; a training for each"
    add("--seed", type=int, nargs="+", default=[0], help=seeds)
    add("--epochs", type=positive, help=f"passes over the data; {workload.epochs} at full size")
    workload.options(add)
    return found


def common(program: str, about: str) -> Parser:
    """The options of all workloads together, as well as of each."""
    found = Parser(
        prog=program, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = found.add_argument
    turn = "whose layers; both are trained in turn, epoch by epoch, so that their times compare"
    add("--impl", choices=IMPLEMENTATIONS, nargs="+", default=["fusedrnn"], help=turn)
    add("--device", type=_device, default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--threads", type=positive, help="CPU threads; torch's own choice when not given")
    add("--quick", action="store_true", help="reduced size: under a minute on two cores")
    add("--data-dir", help="where the data is; see examples/data/fetch.py for the others")
    add("--synthetic", action="store_true", help="random data of the same shape: for timing only")
    add("--out", type=Path, default=Path("runs"), help="directory for the results and the plots")
    add("--checkpoints", type=Path, help="directory to save every training in, after each epoch")
    add("--resume", action="store_true", help="go on from what is in --checkpoints")
    return found


def sized(args: argparse.Namespace, full: Sizes, quick: Sizes) -> Sizes:
    """`quick` with ``--quick`` and else `full`, of ``--epochs`` where they are given."""
    size: Any = quick if args.quick else full
    found: Sizes = replace(size, epochs=args.epochs or size.epochs)
    return found


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

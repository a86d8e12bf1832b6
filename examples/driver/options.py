"""The options that every workload has, what their values may be, and which of them were given."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from examples.data import fetch
from examples.driver import parallel
from examples.driver.layers import IMPLEMENTATIONS
from examples.driver.workload import Workload

Sizes = TypeVar("Sizes")  # a dataclass with epochs

PLACES = ("out", "checkpoints", "resume", "data_dir", "log_every")  # they make no figure
EPILOG = """\
example:
  python -m examples {example}

data, of what trains on a corpus, is looked for in this order:
{places}
"""


class Parser(argparse.ArgumentParser):
    """Of several processes, the first says what is wrong with the options."""

    def error(self, message: str) -> NoReturn:
        if not parallel.first_to_fail():
            sys.exit(2)
        super().error(message)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Names the default after each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        said = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS):
            return said
        listed = isinstance(action.default, list)
        shown = " ".join(map(str, action.default)) if listed else action.default
        return f"{said} (default: {shown})"


def parser(workload: Workload) -> Parser:
    """The options of one workload."""
    found = _parser(workload.name, workload.about, workload.example)
    add = found.add_argument_group("what is trained").add_argument
    cells = workload.cells
    every = (*cells, *workload.more_cells)
    add("--cell", choices=every, nargs="+", default=list(cells), help="which cells, in turn")
    seeds = "seeds of the parameters, the batches and dropout; a training for each"
    add("--seed", type=int, nargs="+", default=[0], help=seeds)
    workload.options(add)
    add = found.add_argument_group("sizes, where they are not those of the course").add_argument
    add("--epochs", type=positive, help=f"passes over the data; {workload.epochs} at full size")
    for name, (flag, kind, said) in SIZES.items():
        if hasattr(workload.sizes, name) and name not in workload.fixed:
            usual = f"{said}; {getattr(workload.sizes, name)} at full size"
            add(flag, type=kind, dest=name, metavar=flag[2:].upper(), help=usual)
    _add_common(found)
    return found


def common(name: str, about: str, example: str) -> Parser:
    """The options of all workloads together, as well as of each."""
    found = _parser(name, about, example)
    _add_common(found)
    return found


def _parser(name: str, about: str, example: str) -> Parser:
    places = "\n".join(f"  {place}" for place in [*fetch.tried(None), "a download into the cache"])
    epilog = EPILOG.format(example=example, places=places)
    program = f"python -m examples {name}"
    return Parser(prog=program, description=about, epilog=epilog, formatter_class=Formatter)


def _add_common(found: Parser) -> None:
    add = found.add_argument_group("how it is trained").add_argument
    turn = "whose layers; both are trained in turn, epoch by epoch, so that their times compare"
    add("--impl", choices=IMPLEMENTATIONS, nargs="+", default=["fusedrnn"], help=turn)
    add("--device", type=_device, default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--threads", type=positive, help="CPU threads; torch's own choice when not given")
    quick = "reduced size, under a minute on two cores; it teaches nothing about accuracy"
    add("--quick", action="store_true", help=quick)
    add = found.add_argument_group("where things are").add_argument
    add("--data-dir", help="where the data is, before the other places below")
    add("--synthetic", action="store_true", help="random data of the same shape: for timing only")
    add("--out", type=Path, default=Path("runs"), help="directory for the results and the plots")
    add("--checkpoints", type=Path, help="directory to save every training in, after each epoch")
    add("--resume", action="store_true", help="go on from what is in --checkpoints")


def sized(args: argparse.Namespace, full: Sizes, quick: Sizes) -> Sizes:
    """`quick` with ``--quick`` and else `full`, but for the sizes that the options give."""
    size: Any = quick if args.quick else full
    given = {name: getattr(args, name, None) for name in ("epochs", *SIZES)}
    found: Sizes = replace(size, **{name: v for name, v in given.items() if v is not None})
    return found


def given(workload: Workload, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options`, as a header of results has them, that are not the defaults; whose layers
    first."""
    defaults = vars(parser(workload).parse_args([]))
    found = {}
    plain = json.loads(json.dumps(dict(options), default=str))
    for name, value in sorted(plain.items(), key=lambda item: item[0] != "impl"):
        default = json.loads(json.dumps(defaults.get(name), default=str))
        if name == "epochs" and not plain.get("quick"):
            default = workload.epochs
        absent = value is None or value is False  # 0 is neither
        if name not in PLACES and not absent and value != default:
            found[name] = value
    return found


def flag(name: str) -> str:
    """``--lr`` of "learning_rate"."""
    return SIZES[name][0] if name in SIZES else f"--{name.replace('_', '-')}"


def stem(workload: Workload, options: Mapping[str, Any]) -> str:
    """A name of result files that tells these options from all others: ``reuters-torch-seed0+1``.

    Whose layers, then every option that is not the default; words stand for themselves, numbers
    follow their option.
    """
    parts = [workload.name, *options["impl"]]
    for name, value in given(workload, options).items():
        if name == "impl":
            continue
        values = [str(v) for v in (value if isinstance(value, list) else [value])]
        alone = value is not True and not any(v[:1].isdigit() for v in values)
        word = flag(name)[2:] * (not alone) + "+".join(values) * (value is not True)
        parts.append(word)
    return "-".join(parts)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 up to 1, got {text}")
    return value


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text} cannot be used: {reason}") from error
    return device


# Fields that a workload's Config may have: option, type, and what is said of it.
SIZES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "hidden": ("--hidden", positive, "H, the units of a layer and direction"),
    "layers": ("--layers", positive, "L, recurrent layers one above the other"),
    "embedding": ("--embedding", positive, "length of the vector of a word or symbol"),
    "batch": ("--batch", positive, "B, sequences in an update"),
    "learning_rate": ("--lr", above_zero, "learning rate"),
    "dropout": ("--dropout", share, "share of values that dropout sets to zero"),
    "clip": ("--clip", above_zero, "largest norm of all gradients together"),
}

"""The options that the programs of the texts share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from examples.driver.options import positive


def parsed(
    options: argparse.ArgumentParser, argv: Sequence[str], *, synthetic: bool = True
) -> argparse.Namespace:
    """`argv` by `options` and the shared ones, after ``--threads`` has been applied."""
    add = options.add_argument
    add("--threads", type=positive, help="CPU threads; torch's own choice when not given")
    add("--data-dir", help="where the data is; see examples/data/fetch.py for the others")
    if synthetic:
        add("--synthetic", action="store_true", help="random data of the same shape")
    args = options.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    return args

"""The code of Dive into Deep Learning's package d2l (0.16.5), run as it stands.

Its models, its training and its predictions come from the package, unmodified; only the layer is
handed in. `RNNModel` takes one as an argument. `RNNModelScratch` takes functions: here those of the
cell written out, or of a layer. `Seq2SeqEncoder` makes its own nn.GRU, and `train_seq2seq` asks
``type(m) == nn.GRU`` for whom to initialize: both run under ``fusedrnn.patch()``.

The package is older than what it imports. Two things stand in for what it needs (`load`):

- a notebook: it asks ``IPython.display`` for ``set_matplotlib_formats``, which IPython 9 no longer
  has, and shows its curve there;
- torchvision, where that cannot be imported: the wheels of PyPI need a torch with CUDA. Only the
  chapters on images use it.
"""

from __future__ import annotations

import argparse
import importlib
import io
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from examples.data import fetch
from examples.driver.errors import WorkloadError
from examples.driver.layers import CELLS, NAMES, layer_class
from examples.driver.options import positive
from examples.driver.tables import Table
from examples.from_scratch.written_out import STEPS, WrittenOut
from examples.texts.options import parsed

VERSION = "0.16.5"
BATCH, T = 32, 35  # d2l's own
KINDS = ("scratch", "torch", "fusedrnn")


class Notebook:
    """In place of ``IPython.display``: keeps the figure that was shown last."""

    def __init__(self) -> None:
        self.figure: Any = None

    def set_matplotlib_formats(self, *_: str) -> None: ...

    def clear_output(self, wait: bool = False) -> None: ...

    def display(self, figure: Any) -> None:
        self.figure = figure

    def curve(self) -> list[float]:
        """The values of the one line of the figure; none before there was one."""
        return [*map(float, self.figure.axes[0].lines[0].get_ydata())] if self.figure else []


@contextmanager
def _torchvision() -> Iterator[None]:
    """Inside, ``import torchvision`` works: it finds an empty module if there is no other."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # RuntimeError: its operators do not fit this torch
        empty = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms")}
        vars(empty["torchvision"])["transforms"] = empty["torchvision.transforms"]
        sys.modules.update(empty)
        try:
            yield
        finally:
            for name in empty:
                del sys.modules[name]
    else:
        yield


def load(directory: Path | None = None) -> Any:
    """``d2l.torch``, which draws into its attribute ``display``, a `Notebook`.

    Args:
        directory: where its ``download`` looks first, for timemachine.txt; its own place if None.
    """
    try:
        with _torchvision():
            d2l: Any = importlib.reload(importlib.import_module("d2l.torch"))
    except ImportError as error:
        raise WorkloadError(f"{error}: pip install d2l=={VERSION}") from error
    d2l.plt.switch_backend("Agg")
    d2l.display = Notebook()
    if directory:
        d2l.download = partial(d2l.download, cache_dir=str(directory))
    return d2l


def scratch(d2l: Any, cell: str, vocabulary: int, hidden: int) -> Any:
    """d2l's RNNModelScratch of the cell written out, weights drawn with deviation 0.01."""

    def parameters(*_: Any) -> list[nn.Parameter]:
        return [*WrittenOut(cell, vocabulary, hidden).parameters()]

    def forward(
        inputs: Tensor, states: tuple[Tensor, ...], parameters: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        *gates, W_hq, b_q = parameters
        logits = []
        for X in inputs:
            states = STEPS[cell](X, states, gates)
            logits.append(states[0] @ W_hq + b_q)
        return torch.cat(logits), states

    def states(batch: int, hidden: int, device: torch.device) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, hidden, device=device),) * (2 if cell == "lstm" else 1)

    device = torch.device("cpu")
    return d2l.RNNModelScratch(vocabulary, hidden, device, parameters, states, forward)


def concise(d2l: Any, cell: str, impl: str, vocabulary: int, hidden: int) -> Any:
    """d2l's RNNModel of one layer of `impl`."""
    return d2l.RNNModel(layer_class(cell, impl)(vocabulary, hidden), vocabulary)


class Echo(io.StringIO):
    """Keeps what is printed, and passes it on."""

    def __init__(self, to: Any) -> None:
        super().__init__()
        self.to = to

    def write(self, text: str) -> int:
        self.to.write(text)
        return super().write(text)


def train(
    d2l: Any, kind: str, cell: str, hidden: int, epochs: int, *, shuffled: bool = False
) -> tuple[str, ...]:
    """d2l's training of one model; a row of what it says of it."""
    torch.manual_seed(0)
    random.seed(0)
    batches, vocab = d2l.load_data_time_machine(BATCH, T, use_random_iter=shuffled)
    if kind == "scratch":
        model, name = scratch(d2l, cell, len(vocab), hidden), "RNNModelScratch"
    else:
        model, name = concise(d2l, cell, kind, len(vocab), hidden), "RNNModel"
    device = torch.device("cpu")
    print(
        f"\n{name}, {NAMES[kind]}, before: {d2l.predict_ch8('traveller', 50, model, vocab, device)}"
    )
    start, said = time.perf_counter(), Echo(sys.stdout)
    with redirect_stdout(said):
        d2l.train_ch8(model, batches, vocab, 1, epochs, device, shuffled)
    seconds = time.perf_counter() - start
    speed = re.search(r", ([\d.]+) tokens/sec", said.getvalue())
    assert speed is not None
    *_, first, second = said.getvalue().splitlines()
    perplexity = d2l.display.curve()[-1]
    d2l.plt.close("all")
    rate = f"{float(speed[1]):,.0f}"
    return name, NAMES[kind], f"{perplexity:.4f}", rate, f"{seconds:.1f} s", first, second


def tens(text: str) -> int:
    value = positive(text)
    if value % 10:
        message = f"d2l notes every tenth epoch: must be a multiple of 10, got {value}"
        raise argparse.ArgumentTypeError(message)
    return value


def main(argv: Sequence[str]) -> None:
    """The command: trains by d2l's train_ch8 with each kind of model, and compares."""
    about = "d2l's own training on The Time Machine, with whose layer it is handed"
    options = argparse.ArgumentParser(prog="python -m examples.texts d2l", description=about)
    add = options.add_argument
    add("--cell", choices=CELLS, default="lstm")
    add(
        "--impl",
        choices=KINDS,
        nargs="+",
        default=["torch", "fusedrnn"],
        help="scratch: written out",
    )
    add("--hidden", type=positive, default=256)
    add("--epochs", type=tens, default=500)
    add("--random", action="store_true", help="random sampling in place of sequential")
    args = parsed(options, argv, synthetic=False)
    d2l = load(fetch.locate(fetch.TIME_MACHINE, args.data_dir).parent)
    sizes = (args.cell, args.hidden, args.epochs)
    rows = [train(d2l, kind, *sizes, shuffled=args.random) for kind in args.impl]
    title = f"{args.cell.upper()}, H = {args.hidden}, after {args.epochs} epochs of d2l's train_ch8"
    head = ("model", "layer", "perplexity", "tokens/s, last epoch", "training")
    print(f"\n{Table(title, head, [row[: len(head)] for row in rows]).text()}")
    texts = {row[len(head) :] for row in rows if row[0] == "RNNModel"}
    if {"torch", "fusedrnn"} <= {*args.impl}:
        print(f"RNNModel's texts {'are the same' if len(texts) == 1 else 'differ'} at the end.")

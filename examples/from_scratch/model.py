"""From scratch: the cells written out in torch operations, trained beside layers of equal weights.

The table that shows what a fused layer is for. d2l's character model of The Time Machine is drawn
once as written out (`written_out`), Gaussian with deviation 0.01, and its weights are loaded into a
model of each implementation's layer; all see the same batches. The first updates are compared loss
by loss, in float32 and in float64: a difference of rounding shrinks with the precision, one of
formula does not. Then all are trained in turn, epoch by epoch, for their times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from itertools import chain, islice, product

import torch
from torch import Tensor, nn

from examples import data
from examples.driver import training
from examples.driver.errors import WorkloadError
from examples.from_scratch.written_out import WrittenOut, freeze, layer_state
from examples.time_machine import model as time_machine

CONFIG = time_machine.CONFIG
SCRATCH = "scratch"  # stands where the others have their implementation
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build_models(
    cell: str, impls: Sequence[str], vocabulary: int = 28, config: time_machine.Config = CONFIG
) -> dict[str, nn.Module]:
    """The written-out model, drawn from torch's global generator, and one of each of `impls` with
    the same weights, by implementation."""
    scratch = WrittenOut(cell, vocabulary, config.hidden)
    return {SCRATCH: scratch, **{impl: layers_of(scratch, impl, config) for impl in impls}}


def layers_of(
    scratch: WrittenOut, impl: str, config: time_machine.Config
) -> time_machine.LanguageModel:
    """The language model of `impl` with the weights of `scratch`."""
    model = time_machine.build_model(scratch.cell, impl, scratch.vocabulary, config)
    model.to(next(scratch.parameters()).dtype).load_state_dict(layer_state(scratch))
    freeze(model)
    return model


def new_run(
    cell: str, impl: str, seed: int, model: nn.Module, text: data.Text, config: time_machine.Config
) -> training.Run:
    """The training of one of the models, on the device of `text`."""
    optimizer = time_machine.build_optimizer(model, config)
    rng = random.Random(seed)
    # Its parameters have other names than a layer's: a checkpoint of its own.
    form = "written out" if impl == SCRATCH else "layer"
    fields = {"cell": cell, "form": form}
    updates = partial(time_machine.epoch, model, optimizer, text.tokens, "sequential", rng, config)
    about = ("from_scratch", f"{cell}-{form.replace(' ', '-')}-seed{seed}", impl, seed)
    sizes = {"data": data.kind(text.source), **asdict(config)}
    length = time_machine.updates(len(text.tokens), config.batch, config.steps)
    generators = {"batches": rng}
    return training.Run(*about, fields, model, optimizer, updates, sizes, generators, length=length)


def compare(
    models: dict[str, nn.Module], tokens: Tensor, config: time_machine.Config, seed: int, count: int
) -> dict[str, dict[str, list[float]]]:
    """The losses of the first `count` updates of a copy of each model, by dtype and implementation;
    the models stay as they are."""
    found: dict[str, dict[str, list[float]]] = {}
    for (name, dtype), (impl, model) in product(DTYPES.items(), models.items()):
        copy = deepcopy(model).to(dtype)
        about = (copy, time_machine.build_optimizer(copy, config), tokens, "sequential")
        rng = random.Random(seed)
        epochs = (time_machine.epoch(*about, rng, config) for _ in range(count))
        losses = [loss.item() for loss, _ in islice(chain.from_iterable(epochs), count)]
        if not losses:
            raise WorkloadError("too little data for one batch")
        found.setdefault(name, {})[impl] = losses
    return found

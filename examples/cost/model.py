"""Cost: what an RNN, a GRU and an LSTM of one size cost, in training and in inference.

The Time Machine's language model, for several numbers of hidden units. A training epoch is that of
`time_machine`; after it the same batches are read once more without gradients, which is what
inference costs.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from examples import data
from examples.driver import training
from examples.time_machine import model as time_machine

HIDDEN = (64, 128, 256, 512)
CONFIG = replace(time_machine.CONFIG, epochs=8)


@torch.no_grad()
def read(model: nn.Module, tokens: Tensor, config: time_machine.Config) -> float:
    """Seconds to read the batches of an epoch [batch, steps] in evaluation mode; it is restored."""
    training_mode = model.training
    model.eval()
    start = time.perf_counter()
    for x, _ in time_machine.batches(tokens, config=config):
        logits, _ = model(x)
    logits.sum().item()  # waits for the device
    seconds = time.perf_counter() - start
    model.train(training_mode)
    return seconds


def new_run(
    cell: str, impl: str, seed: int, text: data.Text, config: time_machine.Config
) -> training.Run:
    """One training, not begun, on the device of `text`; its figure is the seconds of `read`."""
    run = time_machine.new_run("first", cell, impl, "sequential", seed, text, config)
    return replace(
        run,
        workload="cost",
        name=f"{cell}-H{config.hidden}-seed{seed}",
        fields={"cell": cell, "hidden": config.hidden},
        after=lambda: {"inference": read(run.model, text.tokens, config)},
    )

"""Gradient flow: how much of the gradient of a loss at step T reaches the states before it.

The Time Machine's language model reads T characters and is asked for the next; shown is the norm of
dL/dh_t over t (and of dL/dc_t, an LSTM's other state), before and after training: with torch.nn's
initial weights, where it vanishes; for an LSTM with its forget gate opened by a bias; and with
recurrent weights three times as large, where an RNN's explodes, trained with the norm of the
parameters' gradients clipped and without. Beside dL/dc_t stands what the additive path of c alone
would bring back, the product of the forget gates. The layer is run a step a call, so that every
state is a tensor whose gradient can be kept; in float64, because float32 ends at 1e-45 and the
gradients do not.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples import data
from examples.driver import training
from examples.driver.errors import WorkloadError
from examples.driver.layers import State
from examples.gradient_flow.gates import STARTS, Start, along_the_path, forget_gates
from examples.time_machine import model as time_machine

SHOWN_STARTS = ("usual", "forget1", "forget5", "large")
CLIPPING = {"clipped": True, "free": False}
DENSE, STRIDE = 20, 10  # every distance up to DENSE is measured, then every STRIDE-th

# A norm for each distance, by state: "h", and for an LSTM "c" and "path", c's by its gates alone.
Norms = dict[str, list[float]]


@dataclass(frozen=True)
class Config:
    """Sizes, and how the model is trained between the two measurements."""

    hidden: int = 128
    batch: int = 32
    steps: int = 400  # measured over
    train_steps: int = 100
    learning_rate: float = 0.5
    clip: float = 1.0  # largest norm of all gradients together
    epochs: int = 60


CONFIG = Config()
QUICK = replace(CONFIG, hidden=64, steps=100, train_steps=50, epochs=6)


def build_model(
    cell: str, impl: str, vocabulary: int, start: Start, config: Config
) -> time_machine.LanguageModel:
    """The Time Machine's model, drawn by torch.nn's rule and changed by `start`."""
    sizes = replace(time_machine.CONFIG, hidden=config.hidden)
    model = time_machine.build_model(cell, impl, vocabulary, sizes)
    start.apply(model.rnn)
    return model


def windows(tokens: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """(x [B, T], y [B]): the same random stretches in every run, and the character after each."""
    last = len(tokens) - config.steps
    if last < 1:
        raise WorkloadError(
            f"expected a text of more than {config.steps} characters (--steps), got {len(tokens)}"
        )
    starts = torch.randint(0, last, (config.batch,), generator=torch.Generator().manual_seed(0))
    at = starts[:, None] + torch.arange(config.steps)
    return tokens[at.to(tokens.device)], tokens[(starts + config.steps).to(tokens.device)]


def flow(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Norms of the gradients of the loss at the last step with respect to every state.

    The gradient with respect to h_t is what comes back through step t + 1. Of an LSTM's two states,
    each is varied with the other held fixed.

    Args:
        model: a `time_machine.LanguageModel`; left as it is, measured on a float64 copy.
        x, y: [B, T] characters, and [B] the character after the last.
    Returns:
        for "h" [T], and for "c" and "path" of an LSTM [T - 1], the mean over the rows of the norm,
        from the first step on. "path" is the last of "c" times the forget gates in between.
    """
    model = cast(time_machine.LanguageModel, copy.deepcopy(model).double())
    kept: dict[str, list[Tensor]] = {"h": []}
    state: State | None = None
    for t in range(x.shape[1]):
        _, state = model(x[:, t : t + 1], state)
        parts = (state,) if isinstance(state, Tensor) else state
        for name, part in zip("hc", parts, strict=False):
            part.retain_grad()
            kept.setdefault(name, []).append(part)
    logits = model.linear(kept["h"][-1][0])
    if "c" in kept:
        kept["c"].pop()  # c_T meets the loss within the last call alone
    F.cross_entropy(logits, y, reduction="sum").backward()  # a row's gradient, whatever B is
    found = {
        name: torch.stack([h.grad[0] for h in states if h.grad is not None])
        for name, states in kept.items()
    }
    if "c" in found:
        outputs = torch.cat(kept["h"]).detach()
        one_hot = F.one_hot(x.t(), model.vocabulary).to(outputs.dtype)
        f = forget_gates(model.rnn, one_hot, outputs).detach()[:-1]
        found["path"] = along_the_path(found["c"][-1], f)
    return {name: gradients.norm(dim=-1).mean(-1) for name, gradients in found.items()}


def distances(T: int) -> list[int]:
    """The steps before the last that are measured: 0 is h_T itself, T - 1 is h_1."""
    return sorted({*range(min(DENSE, T)), *range(DENSE, T, STRIDE), T - 1})


def measured(model: nn.Module, x: Tensor, y: Tensor) -> Norms | None:
    """`flow` at the distances; None when a norm is not finite. c's and its path's first is at
    distance 1."""
    T = x.shape[1]
    found = flow(model, x, y)
    if not all(bool(norms.isfinite().all()) for norms in found.values()):
        return None
    return {
        name: [float(norms[T - 1 - d]) for d in distances(T) if T - 1 - d < len(norms)]
        for name, norms in found.items()
    }


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients together, in float64: in float32 its square overflows from 2e19 on,
    long before the gradients do, and clipping to infinity would then make them nan."""
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(gradients), dtype=torch.float64)
    return norm


def new_run(
    cell: str, impl: str, start: str, clipping: str, seed: int, text: data.Text, config: Config
) -> training.Run:
    """The model in its initial state with its updates, which keep the norm of every gradient."""
    torch.manual_seed(seed)
    model = build_model(cell, impl, len(text.symbols), STARTS[start], config)
    model.to(text.tokens.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    rng = random.Random(seed)
    cut = (config.batch, config.train_steps)
    norms: list[Tensor] = []

    def updates() -> training.Updates:
        norms.clear()
        state: State | None = None
        for x, y in time_machine.sequential_batches(text.tokens, *cut, rng):
            optimizer.zero_grad()
            logits, state = model(x, state)
            loss = F.cross_entropy(logits, y.t().flatten())
            loss.backward()
            if CLIPPING[clipping]:
                norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            else:
                norm = gradient_norm(model)
            norms.append(norm.detach())
            optimizer.step()
            state = time_machine.detach(state)
            yield loss.detach(), y.numel()

    def after() -> Mapping[str, float]:
        found = torch.stack(norms)
        clipped = float((found > config.clip).double().mean())
        return {"largest_norm": float(found.max()), "above_clip": clipped}

    sizes = asdict(config) | {"data": data.kind(text.source)}
    del sizes["steps"]  # measured over, before and after
    fields = {"cell": cell, "start": start, "clipping": clipping}
    about = ("gradient_flow", f"{cell}-{start}-{clipping}-seed{seed}", impl, seed)
    own = {"batches": rng}
    run = training.Run(*about, fields, model, optimizer, updates, sizes, own, after)
    run.length = time_machine.updates(len(text.tokens), *cut)
    return run

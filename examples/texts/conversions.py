"""What the texts write otherwise than our layers, loaded into them: how far the results are apart.

A SimpleRNN of two nn.Linear; a GRU of each convention (see `gru`, which also proves what cannot be
converted); a sigmoid with BCELoss in place of logits with BCEWithLogitsLoss.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from examples import data
from examples.driver.layers import fusedrnn
from examples.driver.options import positive
from examples.driver.tables import Table
from examples.texts.gru import GRU, negated, reset_after
from examples.texts.options import parsed
from examples.texts.swap import program
from examples.time_machine import model as time_machine

INPUTS, H, B, T = 8, 32, 16, 20


def of_simple_rnn(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SimpleRNN's weights (two nn.Linear, `input` and `recurrent`) under an RNN layer's names."""
    names = {"ih": "input", "hh": "recurrent"}
    return {
        f"{kind}_{part}_l0": weights[f"{linear}.{kind}"]
        for kind in ("weight", "bias")
        for part, linear in names.items()
    }


def diagonal(gru: GRU) -> GRU:
    """`gru` with all but the diagonal of gate n's U set to zero."""
    with torch.no_grad():
        u_n = gru.get_parameter("weight_hh_l0").chunk(3)[2]
        u_n.copy_(u_n.diag().diag())
    return gru


def differences(theirs: Tensor, ours: Tensor, x: Tensor) -> tuple[float, float]:
    """The largest difference of two results computed from x, and of their slopes by x, as a share
    of the largest value."""
    slope = torch.linspace(-1, 1, theirs.numel()).view(theirs.shape)
    pairs = [
        (theirs.detach(), ours.detach()),
        tuple(torch.autograd.grad(y, x, slope)[0] for y in (theirs, ours)),
    ]
    first, second = (float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    return first, second


def loaded() -> list[tuple[str, str, float, float]]:
    """What is loaded, how, and how far the outputs and the slopes are then from the original's."""
    layers = fusedrnn()
    torch.manual_seed(0)
    x = torch.randn(T, B, INPUTS).requires_grad_()
    found: list[tuple[str, str, float, float]] = []

    simple = program("simple_rnn", "torch").SimpleRNN(INPUTS, H)
    rnn = layers.RNN(INPUTS, H)
    rnn.load_state_dict(of_simple_rnn(simple.state_dict()))
    last = simple.output(rnn(x)[0][-1])
    how = "two nn.Linear as weight and bias of input and state"
    found.append(("SimpleRNN, last output", how, *differences(simple(x.transpose(0, 1)), last, x)))

    def of_gru(what: str, how: str, gru: GRU, weights: Mapping[str, Tensor]) -> None:
        ours = layers.GRU(INPUTS, H)
        ours.load_state_dict(weights)
        found.append((what, how, *differences(gru(x)[0], ours(x)[0], x)))

    gru = GRU(INPUTS, H, reset_before=False, z_keeps=False)
    of_gru("GRU, h' = (1-z) h + z n", "gate z negated", gru, negated(gru.state_dict()))
    of_gru("GRU, h' = (1-z) h + z n", "as it is", gru, gru.state_dict())
    gru = diagonal(GRU(INPUTS, H))
    after = "bias moved out of the reset"
    of_gru("GRU, reset before, U diagonal", after, gru, reset_after(gru.state_dict()))
    gru = GRU(INPUTS, H)
    of_gru("GRU, reset before", after, gru, reset_after(gru.state_dict()))
    return found


def two_units(*, mixed: bool) -> GRU:
    """The GRU of the proof in `gru`: n_1 of r_1 h_1 + r_2 h_2 if `mixed`, else of r_1 h_1."""
    gru = GRU(2, 2).double()
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
        gru.get_parameter("weight_ih_l0")[:2] = 2 * torch.eye(2)
        u_n = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) if mixed else torch.eye(2)
        gru.get_parameter("weight_hh_l0")[4:] = u_n
    return gru


def best_fit(target: GRU, iterations: int, seed: int = 0) -> tuple[float, float]:
    """How near a GRU that resets after the product comes to one step of `target`: the root mean
    square of the difference, with the same weights and after a search for the best (L-BFGS)."""
    torch.manual_seed(seed)
    x, h = 2 * torch.randn(1, 500, 2).double(), 2 * torch.rand(1, 500, 2).double() - 1
    expected = target(x, h)[1].detach()
    found = GRU(2, 2, reset_before=False).double()
    found.load_state_dict(reset_after(target.state_dict()))

    def error() -> Tensor:
        loss: Tensor = (found(x, h)[1] - expected).square().mean()
        return loss

    same = error().sqrt().item()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    search = torch.optim.LBFGS(
        found.parameters(),
        max_iter=iterations,
        history_size=30,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        search.zero_grad()
        loss = error()
        loss.backward()
        return loss.item()

    search.step(closure)
    return same, error().sqrt().item()


@dataclass(frozen=True)
class Continued:
    """Perplexities of a text: epochs since the change of layer, of the model that kept its layer,
    and of the model that goes on with fusedrnn's."""

    epochs: list[int]
    kept: list[float]
    ours: list[float]


def continued(
    text: data.Text, config: time_machine.Config, more: Sequence[int] = (0, 1, 2, 5, 10, 20, 50)
) -> Continued:
    """Trains a model whose GRU resets before the product, hands its weights to fusedrnn.GRU, which
    resets after it, and trains both on."""
    torch.manual_seed(0)
    about = (len(text.symbols), config)
    kept = time_machine.LanguageModel(partial(_before), *about)
    train(kept, text, config, config.epochs)
    ours = time_machine.LanguageModel(fusedrnn().GRU, *about)
    ours.rnn.load_state_dict(reset_after(kept.rnn.state_dict()))
    ours.linear = deepcopy(kept.linear)
    found: list[list[float]] = []
    for model in (kept, ours):
        found.append([])
        for since, until in zip((0, *more), more, strict=False):
            train(model, text, config, until - since, seed=until)
            found[-1].append(time_machine.evaluate(model, text.tokens, config.batch))
    return Continued([*more], *found)


def _before(inputs: int, hidden: int) -> Any:
    return GRU(inputs, hidden)


def train(
    model: nn.Module, text: data.Text, config: time_machine.Config, epochs: int, seed: int = 0
) -> None:
    optimizer, rng = time_machine.build_optimizer(model, config), random.Random(seed)
    for _ in range(epochs):
        for _ in time_machine.epoch(model, optimizer, text.tokens, "sequential", rng, config):
            pass


def heads(updates: int) -> list[tuple[float, float]]:
    """The losses of SentimentLSTM's first updates: sigmoid and BCELoss, logits and
    BCEWithLogitsLoss."""
    build = program("sentiment_lstm", "fusedrnn").SentimentLSTM
    losses: list[list[float]] = []
    for sigmoid, criterion in ((True, nn.BCELoss()), (False, nn.BCEWithLogitsLoss())):
        torch.manual_seed(0)
        model = build(words=500, hidden=H, sigmoid=sigmoid)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        x, y = torch.randint(1, 500, (B, T)), torch.arange(B) % 2
        losses.append([])
        for _ in range(updates):
            loss = criterion(model(x), y.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    return [*zip(*losses, strict=True)]


def saturated(logits: Sequence[float]) -> list[tuple[float, ...]]:
    """Of a review that is negative, by its logit in float32: loss and slope of either head."""
    rows: list[tuple[float, ...]] = []
    for logit in logits:
        figures: list[float] = []
        for loss_of in (_bce, nn.functional.binary_cross_entropy_with_logits):
            a, zero = torch.tensor(logit, requires_grad=True), torch.tensor(0.0)
            loss = loss_of(a, zero)
            figures += [loss.item(), torch.autograd.grad(loss, a)[0].item()]
        rows.append((logit, *figures))
    return rows


def _bce(logit: Tensor, label: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy(logit.sigmoid(), label)


def tables(text: data.Text, config: time_machine.Config, iterations: int) -> list[Table]:
    """Every conversion with its figures; computes them all."""
    return [_loaded(), _fitted(iterations), _continued(text, config), _heads(20), _saturated()]


Rows = list[tuple[str, ...]]


def _loaded() -> Table:
    rows: Rows = [(what, how, f"{y:.0e}", f"{dx:.0e}") for what, how, y, dx in loaded()]
    title = "Loaded into fusedrnn's layer: largest difference, as a share of the largest value"
    return Table(title, ("the text's", "loaded", "outputs", "slopes by x"), rows)


def _fitted(iterations: int) -> Table:
    rows: Rows = []
    for name, mixed in (("full", True), ("diagonal", False)):
        rows.append((name, *(f"{v:.1e}" for v in best_fit(two_units(mixed=mixed), iterations))))
    what = "One step of a GRU of 2 units, reset before the product, by one that resets after it"
    head = ("U", "same weights", f"searched, {iterations} steps")
    return Table(f"{what}: root mean square of the difference", head, rows)


def _continued(text: data.Text, config: time_machine.Config) -> Table:
    found = continued(text, config)
    figures = zip(found.epochs, found.kept, found.ours, strict=True)
    rows: Rows = [(str(n), f"{a:.3f}", f"{b:.3f}") for n, a, b in figures]
    what = f"{len(text.tokens):,} characters ({data.kind(text.source)}), H = {config.hidden}"
    before = f"epochs with the reset before the product: {config.epochs}"
    title = f"Perplexity of The Time Machine's first {what}; {before}"
    return Table(title, ("epochs more", "before, kept", "after, fusedrnn.GRU"), rows)


def _heads(updates: int) -> Table:
    rows: Rows = [
        (str(n), f"{a:.6f}", f"{b:.6f}", f"{abs(a - b) / b:.0e}")
        for n, (a, b) in enumerate(heads(updates), 1)
        if n in (1, 2, 5, 10, 20)
    ]
    title = "SentimentLSTM's losses on one batch: sigmoid and BCELoss, logits and BCEWithLogitsLoss"
    return Table(title, ("update", "sigmoid", "logits", "difference"), rows)


def _saturated() -> Table:
    logits = (0.0, 5.0, 10.0, 15.0, 20.0, 120.0)
    rows: Rows = [tuple(f"{v:.5g}" for v in row) for row in saturated(logits)]
    head = ("logit", "loss, sigmoid", "slope, sigmoid", "loss, logits", "slope, logits")
    return Table("The same, of a negative review with a given logit, in float32", head, rows)


def main(argv: Sequence[str]) -> None:
    """The command: prints every table."""
    about = "weights of the texts' conventions, loaded into fusedrnn's layers"
    parser = argparse.ArgumentParser(prog="python -m examples.texts conversions", description=about)
    add = parser.add_argument
    add("--hidden", type=positive, default=128, help="of the GRU that is trained on")
    add("--epochs", type=positive, default=300, help="of training before the change of layer")
    add("--iterations", type=positive, default=300, help="steps of the search for a best fit")
    args = parsed(parser, argv)
    text = data.time_machine(args.data_dir, args.synthetic)
    config = replace(time_machine.CONFIG, hidden=args.hidden, epochs=args.epochs)
    print("\n\n".join(table.text() for table in tables(text, config, args.iterations)))

"""Time Machine: a character language model on the novel's first 10,000 characters.

d2l's task: one-hot characters into an RNN, GRU or LSTM of 256 units, trained by truncated
backpropagation either on sequential partitions (each row goes on where it stopped, so the state is
carried and detached) or on randomly sampled subsequences (the state starts anew every batch).

    python benchmarks/workloads/time_machine.py --impl torch --cell lstm --sampling sequential
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads import common, data, plots, training

SAMPLINGS = ("sequential", "random")
PREFIXES = ("time traveller", "traveller")

State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c) of an LSTM; each [1, B, H]


@dataclass(frozen=True)
class Config:
    """The task's sizes and how it is trained."""

    hidden: int = 256
    batch: int = 32
    steps: int = 35
    learning_rate: float = 1.0
    clip: float = 1.0  # largest norm of all gradients together
    epochs: int = 500


CONFIG = Config()


class LanguageModel(nn.Module):
    """Logits [T*B, V] of the next character, time first, and the last state."""

    def __init__(self, layer: common.Layer, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rnn = layer(vocabulary, hidden)
        self.linear = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        one_hot = F.one_hot(x.t(), self.vocabulary).to(self.linear.weight.dtype)  # [T, B, V]
        output, state = self.rnn(one_hot, state)
        return self.linear(output.flatten(0, 1)), state


def build_model(
    cell: str, impl: str = "fusedrnn", vocabulary: int = 28, config: Config = CONFIG
) -> LanguageModel:
    """The model in its initial state, drawn from torch's global generator.

    Args:
        cell: "rnn", "gru" or "lstm".
        impl: "fusedrnn" or "torch".
    """
    return LanguageModel(common.layer_class(cell, impl), vocabulary, config.hidden)


def build_optimizer(model: nn.Module, config: Config = CONFIG) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=config.learning_rate)


def load(data_dir: str | Path | None = None, synthetic: data.Synthetic = "never") -> data.Text:
    """The characters; the arguments are those of `data.reuters`."""
    return data.time_machine(data_dir, synthetic)


def sequential_batches(
    tokens: Tensor, B: int, T: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) each [B, T], y one character ahead; row b of a batch goes on in row b of the next.

    A random start of 0..T characters is left out, so that epochs cut the text differently.
    """
    start = rng.randint(0, T)
    width = (len(tokens) - start - 1) // B
    x, y = (tokens[at : at + B * width].view(B, width) for at in (start, start + 1))
    for at in range(0, width - T + 1, T):
        yield x[:, at : at + T], y[:, at : at + T]


def random_batches(
    tokens: Tensor, B: int, T: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) each [B, T], y one character ahead; disjoint subsequences in random order."""
    start = rng.randint(0, T - 1)
    starts = [start + T * i for i in range((len(tokens) - start - 1) // T)]
    rng.shuffle(starts)
    for i in range(0, len(starts) - B + 1, B):
        at = (torch.tensor(starts[i : i + B])[:, None] + torch.arange(T)).to(tokens.device)
        yield tokens[at], tokens[at + 1]


BATCHES = dict(zip(SAMPLINGS, (sequential_batches, random_batches), strict=True))


def batches(
    tokens: Tensor,
    sampling: str = "sequential",
    rng: random.Random | None = None,
    config: Config = CONFIG,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (x, y), each [batch, steps], cut from tokens [N]."""
    return BATCHES[sampling](tokens, config.batch, config.steps, rng or random.Random(0))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    state: State | None = None,
    clip: float = CONFIG.clip,
) -> tuple[Tensor, State]:
    """One update on x, y [B, T] from `state` (zeros when None).

    Returns:
        the mean cross-entropy and the state after the last step, both detached.
    """
    optimizer.zero_grad()
    logits, state = model(x, state)
    loss = F.cross_entropy(logits, y.t().flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach(), detach(state)


def detach(state: State) -> State:
    """`state` without its history."""
    return state.detach() if isinstance(state, Tensor) else (state[0].detach(), state[1].detach())


@torch.no_grad()
def generate(model: nn.Module, text: data.Text, prefix: str, count: int = 50) -> str:
    """`prefix` and the `count` characters that `model` finds most likely after it."""
    device = next(model.parameters()).device
    tokens = text.encode(prefix)
    logits, state = model(torch.tensor([tokens], device=device))
    for _ in range(count):
        tokens.append(int(logits[-1].argmax()))
        logits, state = model(torch.tensor([tokens[-1:]], device=device), state)
    return text.decode(tokens)


def train(
    cell: str,
    impl: str,
    sampling: str,
    text: data.Text,
    config: Config,
    *,
    device: torch.device,
    seed: int,
    log_every: int,
    say: common.Console,
) -> dict[str, Any]:
    """Trains one model and lets it write; returns its record for the JSON file."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = build_model(cell, impl, len(text.symbols), config).to(device)
    optimizer = build_optimizer(model, config)
    tokens = text.tokens.to(device)
    parameters = common.count_parameters(model)
    say(f"\n{cell.upper()}, {sampling}, {impl}: {parameters:,} parameters\n{model}")

    def updates() -> training.Updates:
        state: State | None = None
        for x, y in batches(tokens, sampling, rng, config):
            carried = state if sampling == "sequential" else None
            loss, state = train_step(model, optimizer, x, y, carried, config.clip)
            yield loss, y.numel()

    def report(number: int, epoch: training.Epoch) -> None:
        if number % log_every == 0 or number == config.epochs:
            say(
                f"epoch {number}  perplexity {epoch.perplexity:.4f}  "
                f"{epoch.per_second:,.0f} tokens/s"
            )

    history = training.fit(config.epochs, updates, report, label=f"{cell} {sampling}")
    written = [generate(model, text, prefix) for prefix in PREFIXES]
    say("\n".join(written))
    return {
        "cell": cell,
        "sampling": sampling,
        "parameters": parameters,
        "perplexity": history[-1].perplexity,
        "tokens_per_second": sum(e.targets for e in history) / sum(e.seconds for e in history),
        "generated": written,
        "epochs": [asdict(epoch) | {"perplexity": epoch.perplexity} for epoch in history],
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One line per model and sampling."""
    return common.table(
        ("model", "sampling", "perplexity", "tokens/s"),
        (
            (
                r["cell"].upper(),
                r["sampling"],
                f"{r['perplexity']:.4f}",
                f"{r['tokens_per_second']:,.0f}",
            )
            for r in runs
        ),
    )


def options() -> argparse.ArgumentParser:
    parser = common.parser(
        "Train RNN, GRU and LSTM on the characters of The Time Machine.",
        epochs=CONFIG.epochs,
        cells=common.CELLS,
    )
    add = parser.add_argument
    add("--sampling", choices=SAMPLINGS, nargs="+", default=list(SAMPLINGS), help="in turn")
    add("--log-every", type=common.positive, default=10, help="epochs between printed lines")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; raises WorkloadError when it cannot go on."""
    args = options().parse_args(argv)
    common.prepare(args)
    text = load(args.data_dir, "always" if args.synthetic else "never")
    say = common.Console(args.synthetic)
    say(f"data: {text.source}, {len(text.tokens)} characters, {len(text.symbols)} symbols")
    config = replace(CONFIG, epochs=args.epochs)
    runs = [
        train(
            cell,
            args.impl,
            sampling,
            text,
            config,
            device=args.device,
            seed=args.seed,
            log_every=args.log_every,
            say=say,
        )
        for cell in args.cell
        for sampling in args.sampling
    ]
    say("\n" + table(runs))
    stem = common.stem("time_machine", args)
    plots.curves(
        stem.with_suffix(".png"),
        {
            f"{r['cell'].upper()} {r['sampling']}": [e["perplexity"] for e in r["epochs"]]
            for r in runs
        },
        title=f"{say.prefix}Time Machine, {args.impl}",
        y="perplexity",
        log=True,
    )
    common.write_results(
        stem.with_suffix(".json"), args, data=text.source, config=asdict(config), runs=runs
    )
    say(f"written: {stem}.json, {stem}.png")


if __name__ == "__main__":
    common.run(main)

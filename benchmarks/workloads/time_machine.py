"""Time Machine: a character language model, on the novel's first 10,000 characters and on all.

d2l's task: one-hot characters into an RNN, GRU or LSTM of 256 units, trained by truncated
backpropagation either on sequential partitions (each row goes on where it stopped, so the state is
carried and detached) or on randomly sampled subsequences (the state starts anew every batch). Of
10,000 characters d2l's model learns all by heart; of the whole text the last tenth is held out, so
that what is learnt can be told from what is remembered.

    python benchmarks/workloads/time_machine.py --impl fusedrnn torch --cell lstm --corpus first
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads import common, data, training
from benchmarks.workloads.errors import WorkloadError
from benchmarks.workloads.time_machine_summary import draw, summary

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
    characters: int | None = data.MAX_CHARACTERS  # of the text; None: all
    held_out: float = 0.0  # the share of them, at the end, that is not trained on


CONFIG = Config()
CORPORA = {"first": CONFIG, "whole": Config(epochs=15, characters=None, held_out=0.1)}
QUICK = {
    "first": replace(CONFIG, epochs=10),
    "whole": replace(CORPORA["whole"], epochs=2, characters=30_000),
}


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


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor, B: int = CONFIG.batch) -> float:
    """The perplexity of `model` on tokens [N], read as B rows, each from a state of zeros."""
    width = (len(tokens) - 1) // B
    if not width:
        raise WorkloadError(
            f"too little text is held out: expected more than {B} characters, got {len(tokens)}"
        )
    x, y = (tokens[at : at + B * width].view(B, width) for at in (0, 1))
    logits, _ = model(x)
    return math.exp(F.cross_entropy(logits.double(), y.t().flatten()).item())


def new_run(
    corpus: str,
    cell: str,
    impl: str,
    sampling: str,
    text: data.Text,
    config: Config = CONFIG,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> training.Run:
    """One training, not begun.

    Args:
        corpus: "first" or "whole", for its name.
        sampling: "sequential" or "random".
        text: of which the last ``config.held_out`` is for validation.
    """
    training.start(seed)
    rng = random.Random(seed)
    model = build_model(cell, impl, len(text.symbols), config).to(device)
    optimizer = build_optimizer(model, config)
    cut = len(text.tokens) - int(len(text.tokens) * config.held_out)
    tokens, held_out = text.tokens[:cut].to(device), text.tokens[cut:].to(device)

    def updates() -> training.Updates:
        state: State | None = None
        for x, y in batches(tokens, sampling, rng, config):
            carried = state if sampling == "sequential" else None
            loss, state = train_step(model, optimizer, x, y, carried, config.clip)
            yield loss, y.numel()

    sizes = asdict(config)
    del sizes["epochs"]
    return training.Run(
        name=f"{corpus}-{cell}-{sampling}-seed{seed}",
        impl=impl,
        seed=seed,
        model=model,
        optimizer=optimizer,
        updates=updates,
        task={
            "workload": "time_machine",
            "data": "synthetic" if text.source == data.SYNTHETIC else "real",
            "cell": cell,
            "sampling": sampling,
            **sizes,
        },
        generators={"batches": rng},
        after=(lambda: {"held_out": evaluate(model, held_out, config.batch)})
        if config.held_out
        else None,
    )


def options() -> argparse.ArgumentParser:
    parser = common.parser(
        "Train RNN, GRU and LSTM on the characters of The Time Machine.",
        epochs=CONFIG.epochs,
        cells=common.CELLS,
    )
    add = parser.add_argument
    add(
        "--corpus",
        choices=list(CORPORA),
        nargs="+",
        default=list(CORPORA),
        help="the first 10,000 characters, or all with the last tenth held out "
        f"({CORPORA['whole'].epochs} epochs at full size)",
    )
    add("--sampling", choices=SAMPLINGS, nargs="+", default=list(SAMPLINGS), help="in turn")
    add("--log-every", type=common.positive, default=10, help="epochs between printed lines")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; raises WorkloadError when it cannot go on."""
    args = options().parse_args(argv)
    common.prepare(args)
    checkpoints = common.checkpoints(args)
    say = common.Console(args.synthetic)
    configs, runs, source = {}, [], ""
    for corpus in dict.fromkeys(args.corpus):
        epochs = common.epochs(args, CORPORA[corpus].epochs, QUICK[corpus].epochs)
        config = replace((QUICK if args.quick else CORPORA)[corpus], epochs=epochs)
        mode: data.Synthetic = "always" if args.synthetic else "never"
        text = data.time_machine(args.data_dir, mode, config.characters)
        configs[corpus], source = asdict(config), Path(text.source).name
        say(f"data: {text.source}, {len(text.tokens):,} characters, {len(text.symbols)} symbols")

        def report(
            run: training.Run, number: int, epoch: training.Epoch, last: int = epochs
        ) -> None:
            if number % args.log_every == 0 or number == last:
                held_out = "".join(f"held out {value:.4f}  " for value in epoch.figures.values())
                say(
                    f"{run.impl:8}  epoch {number}  perplexity {epoch.perplexity:.4f}  "
                    f"{held_out}{epoch.per_second:,.0f} tokens/s"
                )

        for cell in args.cell:
            for sampling in dict.fromkeys(args.sampling):
                for seed in args.seed:
                    pair = [
                        new_run(
                            *(corpus, cell, impl, sampling, text, config),
                            device=args.device,
                            seed=seed,
                        )
                        for impl in args.impl
                    ]
                    parameters = common.count_parameters(pair[0].model)
                    say(
                        f"\n{cell.upper()}, {corpus}, {sampling}, seed {seed}: "
                        f"{parameters:,} parameters"
                    )
                    training.fit(pair, epochs, report, checkpoints=checkpoints)
                    for run in pair:
                        written = [generate(run.model, text, prefix) for prefix in PREFIXES]
                        say("\n".join(written))
                        runs.append(
                            run.record(
                                corpus=corpus,
                                cell=cell,
                                sampling=sampling,
                                parameters=parameters,
                                generated=written,
                            )
                        )
    record = {"workload": "time_machine", "data": source, "config": configs, "runs": runs}
    common.finish(args, say, summary, record, draw)


if __name__ == "__main__":
    common.run(main)

"""Sequence to sequence: an encoder reads a date as people write it, a decoder writes ISO 8601.

One layer of each, LSTM or GRU, and nothing but the encoder's last state between them, so that the
lengths of both sides are free. The encoder takes packed rows. While training, the decoder is fed
the symbol that should have come before (teacher forcing) or the one it found most likely itself;
the forcing ratio is the probability of the former, drawn anew for every symbol (Bengio et al.,
2015), constant or scheduled to fall from 1 to 0. A ratio of 1 needs no symbol of the decoder's own:
the layer then runs over all steps in one call. Otherwise it is called a step at a time, where the
cost of a call shows. A test date counts when greedy decoding gives every symbol of it.

    python benchmarks/workloads/seq2seq.py --impl fusedrnn torch --cell lstm --forcing 1.0 scheduled
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads import common, seq2seq_task, training
from benchmarks.workloads.seq2seq_summary import draw, summary
from benchmarks.workloads.seq2seq_task import PAD, START, Pair, Rows

WORKLOAD = "seq2seq"
CELLS = ("lstm", "gru")
SCHEDULED = "scheduled"
FORCINGS = ("1.0", "0.5", "0.0", SCHEDULED)

State = Tensor | tuple[Tensor, Tensor]  # h, or (h, c) of an LSTM; each [1, B, H]


@dataclass(frozen=True)
class Config:
    """The task's sizes and how it is trained."""

    train: int = 20_000  # pairs
    test: int = 2_000
    task_seed: int = 0  # of the pairs, which are the same for every --seed
    embedding: int = 32
    hidden: int = 128
    batch: int = 64
    learning_rate: float = 5e-3
    decay: float = 0.7  # of the learning rate, after every epoch
    clip: float = 1.0  # largest norm of all gradients together
    fall: int = 6  # epochs in which a scheduled ratio falls from 1 to 0
    epochs: int = 7


CONFIG = Config()
QUICK = replace(CONFIG, train=3_000, test=300, fall=2, epochs=3)


class Translator(nn.Module):
    """An encoder and a decoder over one alphabet."""

    def __init__(self, layer: common.Layer, symbols: int, config: Config) -> None:
        super().__init__()
        self.read = nn.Embedding(symbols, config.embedding)
        self.encoder = layer(config.embedding, config.hidden)
        self.written = nn.Embedding(symbols, config.embedding)
        self.decoder = layer(config.embedding, config.hidden)
        self.linear = nn.Linear(config.hidden, symbols)

    def encode(self, rows: Rows) -> State:
        """The state after each row's own last symbol."""
        embedded = self.read(rows.x.t())  # time first: [S, B, E]
        packed = rnn.pack_padded_sequence(embedded, rows.lengths, enforce_sorted=False)
        state: State = self.encoder(packed)[1]
        return state

    def decode(self, symbols: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [T, B, V] of what follows each of `symbols` [T, B], and the last state."""
        output, state = self.decoder(self.written(symbols), state)
        return self.linear(output), state

    def forward(
        self, rows: Rows, ratio: float = 1.0, coins: torch.Generator | None = None
    ) -> Tensor:
        """Logits [T, B, V] of ``rows.y``.

        Args:
            ratio: the probability that the decoder is fed a true symbol, not its own.
            coins: a CPU generator to draw that from; torch's global one when None.
        """
        state = self.encode(rows)
        truth = F.pad(rows.y.t()[:-1], (0, 0, 1, 0), value=START)  # [T, B]
        if ratio == 1:
            return self.decode(truth, state)[0]
        forced = (torch.rand(truth.shape, generator=coins) < ratio).to(truth.device)
        logits, state = self.decode(truth[:1], state)
        steps = [logits]
        for t in range(1, len(truth)):
            fed = torch.where(forced[t], truth[t], steps[-1][0].argmax(-1))
            logits, state = self.decode(fed[None], state)
            steps.append(logits)
        return torch.cat(steps)

    @torch.no_grad()
    def translate(self, rows: Rows, limit: int) -> list[str]:
        """Greedy decoding: the likeliest symbol each step, fed back, up to END or `limit`."""
        state = self.encode(rows)
        fed = torch.full((1, len(rows)), START, device=rows.x.device)
        found = []
        for _ in range(limit):
            logits, state = self.decode(fed, state)
            fed = logits.argmax(-1)
            found.append(fed)
        return [seq2seq_task.text(row) for row in torch.cat(found).t().tolist()]


def build_model(cell: str, impl: str = "fusedrnn", config: Config = CONFIG) -> Translator:
    """The model in its initial state, drawn from torch's global generator.

    Args:
        cell: "lstm" or "gru" ("rnn" works too).
        impl: "fusedrnn" or "torch".
    """
    return Translator(common.layer_class(cell, impl), len(seq2seq_task.SYMBOLS), config)


def forcing_ratio(forcing: str, epoch: int, config: Config = CONFIG) -> float:
    """The forcing ratio in `epoch`, counted from 0: `forcing` itself unless it is "scheduled"."""
    if forcing != SCHEDULED:
        return float(forcing)
    return max(0.0, 1 - epoch / config.fall)


def train_step(
    model: Translator,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    ratio: float = 1.0,
    coins: torch.Generator | None = None,
    clip: float = CONFIG.clip,
) -> Tensor:
    """One update on `rows`; the mean cross-entropy over their symbols and ENDs, detached."""
    optimizer.zero_grad()
    logits = model(rows, ratio, coins)
    loss = F.cross_entropy(logits.flatten(0, 1), rows.y.t().flatten(), ignore_index=PAD)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


def translations(model: Translator, rows: Rows, size: int = 500) -> list[str]:
    """What `model` makes of every row, `size` rows at a time; no longer than the longest meaning,
    its END included."""
    limit = rows.y.shape[1]
    parts = torch.arange(len(rows)).split(size)
    return [found for part in parts for found in model.translate(rows.take(part), limit)]


def exact(found: Sequence[str], pairs: Sequence[Pair]) -> float:
    """The share of translations that are right in every symbol."""
    return sum(a == pair.iso for a, pair in zip(found, pairs, strict=True)) / len(pairs)


def by_form(found: Sequence[str], pairs: Sequence[Pair]) -> dict[str, float]:
    """`exact` of each form that occurs, in the order of ``FORMS``."""
    shares = {}
    for form in seq2seq_task.FORMS:
        at = [i for i, pair in enumerate(pairs) if pair.form == form.name]
        if at:
            shares[form.name] = exact([found[i] for i in at], [pairs[i] for i in at])
    return shares


@dataclass(frozen=True)
class Data:
    """The pairs, and the same as symbols on the device."""

    train: Rows
    test: Rows
    test_pairs: list[Pair]  # as the rows of `test`


def load(config: Config = CONFIG, device: torch.device | str = "cpu") -> Data:
    """The pairs of ``config.task_seed``."""
    train, test = seq2seq_task.pairs(config.train, config.test, config.task_seed)
    on = torch.device(device)
    return Data(seq2seq_task.rows(train).to(on), seq2seq_task.rows(test).to(on), test)


def new_run(
    cell: str, impl: str, forcing: str, data: Data, config: Config = CONFIG, *, seed: int = 0
) -> training.Run:
    """One training, not begun: its model, updates and exact matches after each epoch."""
    training.start(seed)
    model = build_model(cell, impl, config).to(data.train.x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    order, coins = (torch.Generator().manual_seed(seed) for _ in range(2))

    def updates() -> training.Updates:
        epoch = len(run.history)
        ratio = forcing_ratio(forcing, epoch, config)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.decay**epoch
        for at in torch.randperm(len(data.train), generator=order).split(config.batch):
            rows = data.train.take(at)
            loss = train_step(model, optimizer, rows, ratio, coins, config.clip)
            yield loss, int(rows.targets.sum())

    def after() -> dict[str, float]:
        return {"exact": exact(translations(model, data.test), data.test_pairs)}

    sizes = asdict(config)
    del sizes["epochs"]
    run = training.Run(
        name=f"{cell}-forcing{forcing}-seed{seed}",
        impl=impl,
        seed=seed,
        model=model,
        optimizer=optimizer,
        updates=updates,
        task={"workload": WORKLOAD, "cell": cell, "forcing": forcing, **sizes},
        generators={"order": order, "coins": coins},
        after=after,
    )
    return run


def options() -> argparse.ArgumentParser:
    parser = common.parser(
        "Train an encoder and a decoder to write dates as ISO 8601.",
        epochs=CONFIG.epochs,
        cells=CELLS,
    )
    parser.epilog = "The dates are generated: --data-dir is not used, --synthetic only named."
    parser.add_argument(
        "--forcing",
        type=_forcing,
        nargs="+",
        default=list(FORCINGS),
        help=f"teacher forcing ratios, in turn: from 0 to 1, or {SCHEDULED} to fall from 1 to 0",
    )
    return parser


def _forcing(text: str) -> str:
    if text == SCHEDULED:
        return text
    ratio = float(text)
    if not 0 <= ratio <= 1:
        raise argparse.ArgumentTypeError(f"must be {SCHEDULED} or from 0 to 1, got {text}")
    return str(ratio)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; raises WorkloadError when it cannot go on."""
    args = options().parse_args(argv)
    common.prepare(args)
    args.forcing = list(dict.fromkeys(args.forcing))
    size = QUICK if args.quick else CONFIG
    config = replace(size, epochs=common.epochs(args, CONFIG.epochs, QUICK.epochs))
    checkpoints = common.checkpoints(args)
    data = load(config, args.device)
    say = common.Console(args.synthetic)
    say(
        f"data: {seq2seq_task.SOURCE}, seed {config.task_seed}, "
        f"{len(data.train):,} pairs to train, {len(data.test):,} to test"
    )

    def report(run: training.Run, number: int, epoch: training.Epoch) -> None:
        say(
            f"{run.impl:8}  forcing {run.task['forcing']:9}  epoch {number}  "
            f"loss {epoch.loss:.4f}  exact match {epoch.figures['exact']:.4f}  "
            f"{epoch.per_second:,.0f} symbols/s"
        )

    records = []
    for seed in args.seed:
        for cell in args.cell:
            runs = [  # all in turn, so that the times of the forcing ratios compare as well
                new_run(cell, impl, forcing, data, config, seed=seed)
                for forcing in args.forcing
                for impl in args.impl
            ]
            parameters = common.count_parameters(runs[0].model)
            say(f"\n{cell.upper()}, seed {seed}: {parameters:,} parameters\n{runs[0].model}")
            training.fit(runs, config.epochs, report, checkpoints=checkpoints)
            records += [_record(run, cell, parameters, data) for run in runs]
    record = {
        "workload": WORKLOAD,
        "data": seq2seq_task.SOURCE,
        "config": asdict(config),
        "runs": records,
    }
    common.finish(args, say, summary, record, draw)


def _record(run: training.Run, cell: str, parameters: int, data: Data) -> dict[str, Any]:
    """Its entry in the JSON file, with exact matches by form and the first test pair of each."""
    model = run.model
    assert isinstance(model, Translator)
    found = translations(model, data.test)
    examples = {
        pair.form: [pair.spelling, pair.iso, translation]
        for pair, translation in reversed(list(zip(data.test_pairs, found, strict=True)))
    }
    return run.record(
        cell=cell,
        forcing=run.task["forcing"],
        parameters=parameters,
        by_form=by_form(found, data.test_pairs),
        examples=[examples[form.name] for form in seq2seq_task.FORMS if form.name in examples],
    )


if __name__ == "__main__":
    common.run(main)

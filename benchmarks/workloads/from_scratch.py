"""From scratch: the cells written out in torch operations, trained beside layers of equal weights.

The table that shows what a fused layer is for. d2l's character model of The Time Machine is drawn
once as written out (`written_out`), Gaussian with deviation 0.01, and its weights are loaded into a
model of each implementation's layer; all see the same batches. The first updates are compared loss
by loss, in float32 and in float64: a difference of rounding shrinks with the precision, one of
formula does not. Then all are trained in turn, epoch by epoch, for their times.

    python benchmarks/workloads/from_scratch.py --impl fusedrnn torch --cell lstm
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn

if not __package__:  # run as a file: the script's directory is on the path, the repository is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads import common, data, time_machine, training
from benchmarks.workloads.from_scratch_summary import NAMES, SCRATCH, draw, summary
from benchmarks.workloads.written_out import WrittenOut, freeze, layer_state

CONFIG = replace(time_machine.CONFIG, epochs=100)
QUICK_EPOCHS = 4
COMPARED, QUICK_COMPARED = 40, 8  # updates compared loss by loss
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build_models(
    cell: str, impls: Sequence[str], vocabulary: int = 28, config: time_machine.Config = CONFIG
) -> dict[str, nn.Module]:
    """The written-out model, drawn from torch's global generator, and one of each of `impls` with
    the same weights, by implementation."""
    scratch = WrittenOut(cell, vocabulary, config.hidden)
    models: dict[str, nn.Module] = {SCRATCH: scratch}
    for impl in impls:
        models[impl] = time_machine.build_model(cell, impl, vocabulary, config)
        models[impl].load_state_dict(layer_state(scratch))
        freeze(models[impl])
    return models


def epoch_of_updates(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    rng: random.Random,
    config: time_machine.Config,
) -> training.Updates:
    """One epoch of sequential batches, the state carried from each to the next."""
    state: time_machine.State | None = None
    for x, y in time_machine.batches(tokens, "sequential", rng, config):
        loss, state = time_machine.train_step(model, optimizer, x, y, state, config.clip)
        yield loss, y.numel()


def first_losses(
    model: nn.Module,
    tokens: Tensor,
    config: time_machine.Config,
    *,
    seed: int,
    count: int,
    dtype: torch.dtype,
) -> list[float]:
    """The losses of the first `count` updates of a copy of `model` in `dtype`."""
    copy = deepcopy(model).to(dtype)
    optimizer = time_machine.build_optimizer(copy, config)
    rng = random.Random(seed)
    updates = chain.from_iterable(
        epoch_of_updates(copy, optimizer, tokens, rng, config) for _ in range(count)
    )
    return [loss.item() for loss, _ in islice(updates, count)]


def build_run(
    cell: str,
    impl: str,
    seed: int,
    model: nn.Module,
    text: data.Text,
    config: time_machine.Config,
) -> training.Run:
    """The training of one of the models, on its device."""
    tokens = text.tokens.to(next(model.parameters()).device)
    optimizer = time_machine.build_optimizer(model, config)
    rng = random.Random(seed)
    # Its parameters have other names than a layer's: a checkpoint of its own.
    form = "written out" if impl == SCRATCH else "layer"
    sizes = {name: value for name, value in asdict(config).items() if name != "epochs"}
    return training.Run(
        name=f"{cell}-{form.replace(' ', '-')}-seed{seed}",
        impl=impl,
        seed=seed,
        model=model,
        optimizer=optimizer,
        updates=partial(epoch_of_updates, model, optimizer, tokens, rng, config),
        task={
            "workload": "from_scratch",
            "cell": cell,
            "form": form,
            "synthetic": text.source == data.SYNTHETIC,
            **sizes,
        },
        generators={"batches": rng},
    )


def compare(
    models: dict[str, nn.Module],
    tokens: Tensor,
    config: time_machine.Config,
    *,
    seed: int,
    count: int,
) -> dict[str, dict[str, list[float]]]:
    """The first losses by dtype and implementation."""
    return {
        name: {
            impl: first_losses(model, tokens, config, seed=seed, count=count, dtype=dtype)
            for impl, model in models.items()
        }
        for name, dtype in DTYPES.items()
    }


def options() -> argparse.ArgumentParser:
    parser = common.parser(
        "Train the written-out RNN, GRU and LSTM beside layers of the same weights.",
        epochs=CONFIG.epochs,
        cells=common.CELLS,
    )
    parser.add_argument(
        "--log-every", type=common.positive, default=10, help="epochs between printed lines"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; raises WorkloadError when it cannot go on."""
    args = options().parse_args(argv)
    common.prepare(args)
    text = data.time_machine(args.data_dir, "always" if args.synthetic else "never")
    say = common.Console(args.synthetic)
    say(f"data: {text.source}, {len(text.tokens)} characters, {len(text.symbols)} symbols")
    config = replace(CONFIG, epochs=common.epochs(args, CONFIG.epochs, QUICK_EPOCHS))
    count = QUICK_COMPARED if args.quick else COMPARED
    checkpoints = common.checkpoints(args)

    def report(run: training.Run, number: int, epoch: training.Epoch) -> None:
        if number % args.log_every == 0 or number == config.epochs:
            say(
                f"{NAMES[run.impl]}: epoch {number}  perplexity {epoch.perplexity:.4f}  "
                f"{epoch.per_second:,.0f} tokens/s"
            )

    compared, records = [], []
    for cell in args.cell:
        for seed in args.seed:
            training.start(seed)
            models = build_models(cell, args.impl, len(text.symbols), config)
            runs = [
                build_run(cell, impl, seed, model.to(args.device), text, config)
                for impl, model in models.items()
            ]
            parameters = common.count_parameters(models[SCRATCH])
            tensors = {name: list(p.shape) for name, p in models[SCRATCH].named_parameters()}
            say(
                f"\n{cell.upper()}, seed {seed}: {parameters:,} parameters in {len(tensors)} "
                f"tensors: {', '.join(f'{name} {shape}' for name, shape in tensors.items())}"
            )
            losses = compare(models, text.tokens.to(args.device), config, seed=seed, count=count)
            compared.append({"cell": cell, "seed": seed, "tensors": tensors, "losses": losses})
            training.fit(runs, config.epochs, report, checkpoints=checkpoints)
            records += [run.record(cell=cell, parameters=parameters) for run in runs]
    record = {
        "workload": "from_scratch",
        "data": Path(text.source).name,
        "config": asdict(config),
        "compared": compared,
        "runs": records,
    }
    common.finish(args, say, summary, record, draw)


if __name__ == "__main__":
    common.run(main)

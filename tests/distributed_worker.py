"""One of two processes that train on halves of a batch; run by test_distributed.py, which compares
what each leaves in the folder with one process on the whole.

    python distributed_worker.py RANK FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn

NAMES = ("RNN", "LSTM", "GRU")
RANKS, T, B, I, H = 2, 5, 3, 4, 6  # noqa: E741


class Model(nn.Module):
    """A layer between linear ones. ``spare`` is only used if asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first = nn.Linear(I, I)
        self.rnn = getattr(fusedrnn, name)(I, H, num_layers=2, bidirectional=True)
        self.spare = getattr(fusedrnn, name)(2 * H, 2 * H)
        self.last = nn.Linear(2 * H, 1)

    def forward(self, x: Tensor | PackedSequence, spare: bool = True) -> Tensor:
        x = x._replace(data=self.first(x.data)) if isinstance(x, PackedSequence) else self.first(x)
        y = self.rnn(x)[0]
        y = self.spare(y)[0] if spare else y
        result: Tensor = self.last(y.data if isinstance(y, PackedSequence) else y)
        return result


def batch(ranks: range) -> tuple[Tensor, Tensor]:
    """The sequences of some ranks, padded [T, B*, I], and their lengths."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(T, RANKS * B, I, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([5, 2, 4, 1, 5, 3])
    columns = slice(ranks.start * B, ranks.stop * B)
    return x[:, columns], lengths[columns]


def pack(ranks: range) -> PackedSequence:
    x, lengths = batch(ranks)
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def build(name: str) -> Model:
    torch.manual_seed(1)
    return Model(name).double()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Of each parameter, by its name before it was wrapped in anything."""
    wrappers = {"module", "_checkpoint_wrapped_module"}
    return {
        ".".join(word for word in key.split(".") if word not in wrappers): parameter.grad
        for key, parameter in model.named_parameters()
    }


def train(model: nn.Module, input: Any, **options: Any) -> dict[str, Tensor | None]:
    """Gradients of a sum over a batch; ranks average theirs, so it is scaled up by their number."""
    scale = 1 if not isinstance(model, DistributedDataParallel) else RANKS
    (model(input, **options).square().sum() * scale).backward()
    return gradients(model)


def data_parallel(name: str, ranks: range) -> Any:
    return train(DistributedDataParallel(build(name)), batch(ranks)[0])


def data_parallel_packed(name: str, ranks: range) -> Any:
    return train(DistributedDataParallel(build(name)), pack(ranks))


def unused_parameters(name: str, ranks: range) -> Any:
    model = DistributedDataParallel(build(name), find_unused_parameters=True)
    return train(model, batch(ranks)[0], spare=False)


def accumulation(name: str, ranks: range) -> Any:
    model = DistributedDataParallel(build(name), gradient_as_bucket_view=True)
    with model.no_sync():
        train(model, batch(ranks)[0])
    return train(model, pack(ranks))


def static_graph_and_checkpoints(name: str, ranks: range) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = build(name)
    model.rnn = checkpoint_wrapper(model.rnn)
    return train(DistributedDataParallel(model, static_graph=True), batch(ranks)[0])


def fully_sharded(name: str, ranks: range) -> Any:
    return train_sharded(shard(build(name)), ranks)


def fully_sharded_from_meta(name: str, ranks: range) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    with torch.device("meta"):
        model = shard(Model(name).double())
    model.to_empty(device="cpu")
    whole = build(name).state_dict()
    set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True))
    return train_sharded(model, ranks)


def shard(model: Model) -> Model:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    for part in (model.rnn, model.spare, model):
        fully_shard(part, mesh=mesh)
    return model


def train_sharded(model: Model, ranks: range) -> dict[str, Tensor | None]:
    for _ in range(2):  # weights are gathered, freed and gathered again
        model.zero_grad()
        (model(batch(ranks)[0]).square().sum() * RANKS).backward()
    found: dict[str, Any] = gradients(model)
    return {k: g.full_tensor() for k, g in found.items()}


SCENARIOS: dict[str, Callable[[str, range], Any]] = {
    f.__name__: f
    for f in (
        data_parallel,
        data_parallel_packed,
        unused_parameters,
        accumulation,
        static_graph_and_checkpoints,
        fully_sharded,
        fully_sharded_from_meta,
    )
}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    for scenario, call in SCENARIOS.items():
        for name in NAMES:
            found = call(name, range(rank, rank + 1))
            torch.save(found, folder / f"{scenario}-{name}-{rank}.pt")
    distributed.barrier()
    # Without taking the group down: now and then one of its threads outlives that and aborts the
    # process ("terminate called without an active exception"), when all there is to test is done.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

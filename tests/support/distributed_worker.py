"""Two processes that train on halves of a batch, on the CPU or on GPUs. What each leaves in the
folder is compared with one process on the whole by test_distributed.py and test_cuda_hardware.py.

    python distributed_worker.py RANK FOLDER WHERE
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Place:
    """Where the processes are, and what they talk over."""

    backend: str
    device: str  # of a rank
    dtype: torch.dtype


PLACES = {
    "CPU": Place("gloo", "cpu", torch.float64),
    "one GPU": Place("gloo", "cuda:0", torch.float32),
    "two GPUs": Place("nccl", "cuda:{rank}", torch.float32),
}
device, dtype = torch.device("cpu"), torch.float64
rnn: Any = torch.backends.cudnn.rnn


@contextmanager
def placed(where: str, rank: int) -> Iterator[Place]:
    """Models and batches are there, and in its dtype; products are those of that dtype."""
    global device, dtype
    before = device, dtype, rnn.fp32_precision
    place = PLACES[where]
    device, dtype = torch.device(place.device.format(rank=rank)), place.dtype
    rnn.fp32_precision = "ieee"
    try:
        yield place
    finally:
        device, dtype, rnn.fp32_precision = before


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


class CutModel(Model):
    """The same over rows that end at their lengths and begin anew, from a state that is learnt,
    where they are reset."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        states = 2 if name == "LSTM" else 1
        self.start = nn.Parameter(torch.linspace(-1, 1, states * 4 * H).view(states, 4, 1, H))

    def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> Tensor:  # type: ignore[override]
        start = tuple(self.start) if len(self.start) > 1 else self.start[0]
        cut = {"lengths": lengths, "resets": resets, "reset_state": start, "checkpoint_every": 2}
        y = self.spare(self.rnn(self.first(x), **cut)[0], lengths=lengths)[0]
        result: Tensor = self.last(y)
        return result


def batch(ranks: range) -> tuple[Tensor, Tensor]:
    """The sequences of some ranks, padded [T, B*, I], and their lengths."""
    generator = torch.Generator("cpu").manual_seed(7)
    x = torch.randn(T, RANKS * B, I, generator=generator, dtype=torch.float64, device="cpu")
    lengths = torch.tensor([5, 2, 4, 1, 5, 3], device="cpu")
    columns = slice(ranks.start * B, ranks.stop * B)
    return x[:, columns].to(device, dtype), lengths[columns]


def pack(ranks: range) -> PackedSequence:
    x, lengths = batch(ranks)
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def cuts(ranks: range) -> dict[str, Tensor]:
    """Where the sequences of some ranks end and are reset."""
    generator = torch.Generator("cpu").manual_seed(8)
    resets = torch.rand(T, RANKS * B, generator=generator, device="cpu") < 0.3
    columns = slice(ranks.start * B, ranks.stop * B)
    return {"lengths": batch(ranks)[1], "resets": resets[:, columns].to(device)}


def build(name: str, kind: type[Model] = Model) -> Model:
    torch.manual_seed(1)
    with torch.device("cpu"):
        model = kind(name)
    return model.to(device, dtype)


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


def data_parallel_cut(name: str, ranks: range) -> Any:
    model = DistributedDataParallel(build(name, CutModel))
    return train(model, batch(ranks)[0], **cuts(ranks))


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
        model = shard(Model(name).to(dtype))
    model.to_empty(device=device)
    whole = build(name).state_dict()
    set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True))
    return train_sharded(model, ranks)


def shard(model: Model) -> Model:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (RANKS,))
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
        data_parallel_cut,
        unused_parameters,
        accumulation,
        static_graph_and_checkpoints,
        fully_sharded,
        fully_sharded_from_meta,
    )
}


# gloo has no reduce_scatter for what is on a GPU.
OVER_GLOO = [name for name in SCENARIOS if not name.startswith("fully_sharded")]


def on_one(scenario: str, name: str) -> dict[str, Tensor | None]:
    """The gradients that one process has after the scenario."""
    model, all_ranks = build(name), range(RANKS)
    if scenario == "data_parallel_packed":
        return train(model, pack(all_ranks))
    if scenario == "data_parallel_cut":
        return train(build(name, CutModel), batch(all_ranks)[0], **cuts(all_ranks))
    if scenario == "unused_parameters":
        return train(model, batch(all_ranks)[0], spare=False)
    found = train(model, batch(all_ranks)[0])
    return train(model, pack(all_ranks)) if scenario == "accumulation" else found


def run_ranks(folder: Path, where: str) -> None:
    """Runs both processes; asserts that they end well."""
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder), where],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        told = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(told)


def main() -> None:
    rank, folder, where = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    with placed(where, rank) as place:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group(
            place.backend,
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=RANKS,
            timeout=timedelta(seconds=60),
        )
        for scenario in OVER_GLOO if where == "one GPU" else SCENARIOS:
            for name in NAMES:
                found = SCENARIOS[scenario](name, range(rank, rank + 1))
                torch.save(found, folder / f"{scenario}-{name}-{rank}.pt")
        distributed.barrier()
    # Without taking the group down: now and then one of its threads outlives that and aborts the
    # process ("terminate called without an active exception"), when all there is to test is done.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

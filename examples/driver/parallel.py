"""One training over the processes that torchrun starts (data parallel).

Every process draws the same batches and takes its share of the rows. Shares may be unequal, so each
loss is weighted such that the gradient which DistributedDataParallel averages is exactly that of
the whole batch's mean loss: without dropout, any number of processes trains as one does, to
rounding.

    loss = F.cross_entropy(wrapped(share(x)), share(y)) * weight(len(y))
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from examples.driver.errors import WorkloadError


@dataclass(frozen=True)
class Processes:
    """The processes of this run, of which this is number `rank`."""

    rank: int = 0
    size: int = 1

    @property
    def leader(self) -> bool:
        """Whether this process prints, writes and saves."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model`, whose gradients the processes average where there are several."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch, every `size`-th of the first dimension; at least one:
        a process for which no row is left takes the first, with weight 0."""
        own = rows[self.rank :: self.size]
        return own if len(own) or not len(rows) else rows[:1]

    def weight(self, total: int) -> float:
        """What to multiply the mean loss over this process's share of `total` rows by."""
        return self.size * len(range(self.rank, total, self.size)) / total

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, on every process; of weighted losses: the batch's loss."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size


def processes() -> Processes:
    """The processes of this run: one, unless `start` joined several."""
    if not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def start(device: torch.device) -> torch.device:
    """Joins the processes when torchrun started this one; gloo on the CPU, NCCL on GPUs. Returns
    this process's device: of several GPUs, the one of its local rank."""
    if not expected():
        return device
    if device.type == "cuda":
        local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= found:
            raise WorkloadError(
                f"every process needs its own GPU: expected at least {local + 1}, got {found}; "
                "lower --nproc-per-node or use --device cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    try:
        store, rank, size = _meeting()
        backend, own = "nccl" if device.type == "cuda" else "gloo", PrefixStore("workload", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WorkloadError(f"the processes do not meet: {reason}; start with torchrun") from error
    return device


@cache
def _meeting() -> tuple[Store, int, int]:
    """Where the processes meet, this one's rank, and how many they are."""
    store, rank, size = next(iter(rendezvous("env://")))
    return store, rank, size


def expected() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first_to_fail() -> bool:
    """Whether no other process has asked this: the one that did says what went wrong."""
    if not expected():
        return True
    try:
        return bool(_meeting()[0].add("failed", 1) == 1)
    except (RuntimeError, ValueError):  # whoever kept the store has ended, or there was none
        return os.environ.get("RANK") == "0"


def stop() -> None:
    """Leaves the processes that `start` joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end(status: int) -> NoReturn:
    """Exits; as one of several processes without tidying up Python, which now and then aborted one
    of them ("terminate called without an active exception"). gloo's threads are seen to outlive a
    group that DistributedDataParallel has used; that one which still holds a tensor is what aborts,
    as in pytorch/pytorch#179291, is inferred."""
    if expected():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

"""Runs in training on disk: one file each, replaced whole after every epoch.

A file holds tensors, numbers, strings and lists alone, and is read without unpickling anything
else. It says which task it belongs to and not whose layers trained it, since both name their
parameters alike: what fusedrnn began goes on under torch.nn, and back.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from examples.data.fetch import replacing
from examples.driver.errors import CorruptFile, WorkloadError
from examples.driver.parallel import processes
from examples.driver.training import Epoch, Generator, Run

KEYS = {"task", "seed", "model", "optimizer", "random_state", "generators", "history"}


@dataclass
class Checkpoints:
    """The files of one command's runs, ``<workload>-<name>.pt`` in `directory`.

    Args:
        resume: go on from the files; otherwise a file that is there is an error, for it would be
            lost.
        per_impl: ``-<impl>`` ends the names, so that both implementations have their own.
    """

    directory: Path
    resume: bool
    per_impl: bool = False
    saved: dict[Path, int] = field(default_factory=dict)  # epochs in each file met by this command

    def path(self, run: Run) -> Path:
        impl = f"-{run.impl}" if self.per_impl else ""
        return self.directory / f"{run.workload}-{run.name}{impl}.pt"

    def save(self, run: Run) -> None:
        """Writes `run` after its last epoch; of several processes, the first does."""
        path = self.path(run)
        if processes().leader:
            state = {
                "task": json.dumps(run.task),
                "seed": run.seed,
                "model": run.model.state_dict(),
                "optimizer": run.optimizer.state_dict(),
                "random_state": run.random_state,
                "generators": {name: _state(g) for name, g in run.generators.items()},
                "history": [asdict(epoch) for epoch in run.history],
            }
            stream = io.BytesIO()  # a full disk is an OSError of write_bytes, not of torch.save
            torch.save(state, stream)
            with replacing(path) as temporary:
                temporary.write_bytes(stream.getvalue())
        self.saved[path] = len(run.history)

    def load(self, run: Run) -> None:
        """Brings `run` to where its file left it; nothing when there is no file."""
        path = self.path(run)
        if not path.exists():
            return
        if not self.resume:
            raise WorkloadError(
                f"{path} is there and would be lost: --resume goes on from it; "
                "otherwise delete it or give another --checkpoints"
            )
        state = read(path)
        here = {**json.loads(json.dumps(run.task)), "seed": run.seed}
        _agree(path, here, {**json.loads(state["task"]), "seed": state["seed"]})
        try:
            run.model.load_state_dict(state["model"])
            run.optimizer.load_state_dict(state["optimizer"])
            run.history[:] = [Epoch(**epoch) for epoch in state["history"]]
            for name, generator in run.generators.items():
                _set_state(generator, state["generators"][name])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise _Other(path, f"does not fit this model: {reason}") from error
        run.random_state = state["random_state"]
        self.saved[path] = len(run.history)

    def kept(self) -> str:
        """What the files keep and how to go on, for the message of a run that ends early."""
        if not self.saved:
            return "nothing was written"
        epochs = sorted(set(self.saved.values()))
        after = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
        return (
            f"{self.directory} keeps {len(self.saved)} of the runs, after epoch {after}; "
            "the same command with --resume goes on from there"
        )


class _Other(WorkloadError):
    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}; give another --checkpoints")


def read(path: Path) -> dict[str, Any]:
    """What a file holds: `KEYS`; WorkloadError where it is damaged or another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CorruptFile(path, f"{damaged} has another checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        more = "it holds more than tensors and numbers"
        raise _Other(path, f"is no checkpoint of a workload: {more}") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptFile(path, error) from error
    found = set(state) if isinstance(state, Mapping) else set()
    if found != KEYS:
        names = ", ".join(sorted(map(str, found))[:4]) or type(state).__name__
        expected = ", ".join(sorted(KEYS))
        raise _Other(path, f"is no checkpoint of a workload: expected {expected}, got {names}")
    return dict(state)


def _agree(path: Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    for key in (*here, *(key for key in there if key not in here)):
        expected, got = here.get(key), there.get(key)
        if expected != got:
            raise WorkloadError(
                f"{path} is of another training: expected {key} {expected}, got {got}; "
                "give the options it was made with, or another --checkpoints"
            )


def _state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    version, words, gauss = generator.getstate()
    return [version, list(words), gauss]


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))
    else:
        generator.set_state(state)

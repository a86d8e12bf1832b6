"""``fusedrnn tune``: measures the kernels on this GPU, so that plans need not estimate.

A child process (``tune_worker``) checks every candidate, ours and cuDNN, against float64 and times
it. A kernel that hangs, crashes or computes wrongly is taken out, and the others are still tried.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _C, _binary, experience, ops
from ._explain import explain
from ._ops.cells import CELLS

SECONDS = 45.0  # of `python -m fusedrnn tune`
FAR = 3.0  # times the cheapest estimate: `tune` of common classes skips tiles beyond that
COMMAND = [sys.executable, "-m", "fusedrnn.tune_worker"]
START_LIMIT, JOB_LIMIT = 180.0, 20.0  # seconds; a job takes less than one
TILES = 64  # more than there are
NAMES = {"RNN_TANH": "RNN"}


@dataclass(frozen=True)
class Gpu:
    """A device to be measured: the key of its figures, and its limits."""

    index: int
    device: str
    key: dict[str, Any]
    limits: dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """A class of problems; H and B are the class's largest."""

    mode: str
    H: int
    B: int
    D: int
    tf32: bool

    def __str__(self) -> str:
        directions = ", both directions" if self.D > 1 else ""
        precision = "TF32" if self.tf32 else "ieee"
        name = NAMES.get(self.mode, self.mode)
        return f"{name} H<={self.H} B<={self.B} {precision}{directions}"


@dataclass(frozen=True)
class Result:
    """What one kernel takes for one pass of a class of problems.

    Attributes:
        sizes: the class, in words.
        backward: the pass.
        kernel: "block", "cluster", "stepwise" or "torch" (cuDNN).
        tile: the row of csrc/cuda/tiles.h of a block or cluster kernel; else -1.
        L: layers of the stack that was timed. Our layers run one after the other, so 1 stands for
            any number. cuDNN may run layers side by side, so it is also timed with 2, which
            stands for all larger numbers.
        training_us: microseconds for one time step of one layer when gradients are kept,
            products included; None if the kernel failed.
        inference_us: the same without gradients; None for a backward pass.
        reason: why the kernel failed; empty if it did not.
    """

    sizes: str
    backward: bool
    kernel: str
    tile: int
    L: int
    training_us: float | None
    inference_us: float | None
    reason: str = ""

    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        name = self.kernel + (f" {self.tile}" if self.tile >= 0 else "")
        name += ", 2 layers" if self.L > 1 else ""
        times = [f"{us:.2f}" if us else "" for us in (self.training_us, self.inference_us)]
        return self.sizes, "backward" if self.backward else "forward", name, *times, self.reason


@dataclass(frozen=True)
class Tuning:
    """What :func:`fusedrnn.tune` has measured; prints as a table.

    Attributes:
        gpu: the device's name.
        file: where the figures are kept.
        results: one for each class of problems, pass and kernel, the fastest first.
        left_out: classes that were not measured, each with the reason.
    """

    gpu: str
    file: Path
    results: tuple[Result, ...]
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ("class", "pass", "kernel", "training", "inference", "")
        rows = [head, *(result.cells() for result in self.results)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{self.gpu}: microseconds a time step and layer, products included",
            *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
            *(f"left out: {what}" for what in self.left_out),
            f"kept in {self.file}",
        ]
        return "\n".join(lines)


class Worker:
    """A child process that tries kernels, restarted after a kernel has killed it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer to a job, or the reason why there is none."""
        if self.process is None:
            self._start()
        assert self.process
        assert self.process.stdin
        with suppress(BrokenPipeError):  # _answer says what it died of
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        answer = self._answer(JOB_LIMIT)
        if answer.get("dead"):
            self.end()
        return answer

    def end(self) -> None:
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.stderr):
            assert stream
            with suppress(BrokenPipeError):
                stream.close()
        self.process = None

    def _start(self) -> None:
        self.stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 -- lives with the process
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*COMMAND, self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )
        threading.Thread(target=_read, args=(self.process, self.lines), daemon=True).start()
        answer = self._answer(START_LIMIT)
        if "ready" not in answer:
            raise RuntimeError(f"fusedrnn: the process that tries kernels {answer['failed']}")

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            self.end()
            return {"failed": f"hung: no answer within {limit:g} s"}
        if line is not None:
            answer: dict[str, Any] = json.loads(line)
            return answer
        assert self.process
        status = self.process.wait()
        self.stderr.seek(0)
        said = self.stderr.read().strip().splitlines()
        self.end()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return {"failed": f"crashed: {how}" + (f", {said[-1]}" if said else "")}


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


@dataclass
class Session:
    """One run on one GPU: what was found so far."""

    gpu: Gpu
    worker: Worker
    results: list[Result] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[tuple[bool, int], str] = field(default_factory=dict)
    tried: set[tuple[bool, int]] = field(default_factory=set)

    def candidates(self, sizes: Sizes, backward: bool, every: bool) -> list[tuple[str, int, int]]:
        """(kernel, tile, L) of our kernels for a pass, the cheapest estimate first, then cuDNN."""
        found = []
        for tile in range(TILES):
            try:
                plan = self._plan(sizes, backward, tile)
            except ValueError:  # not made for this, or not on this GPU
                continue
            found.append((plan["step_us"], plan["kernel"], tile))
        found.sort()
        near = [c for c in found if every or c[0] <= FAR * found[0][0]]
        tiles = [(kernel, tile, 1) for _, kernel, tile in near]
        rivals = [("torch", -1, 1), ("torch", -1, 2)] if CELLS[sizes.mode].has_torch else []
        return [*tiles, ("stepwise", -1, 1), *rivals]

    def _plan(self, sizes: Sizes, backward: bool, tile: int) -> dict[str, Any]:
        problem = asdict(sizes) | {
            "dtype": "float32", "T": 100, "I": sizes.H, "P": 0, "packed": False, "training": True
        }  # fmt: skip
        return ops.cuda_plan(problem, self.gpu.limits, ops.Restriction.to_tile(tile), backward)

    def measure(self, sizes: Sizes, every: bool) -> str:
        """Measure all candidates on a class and keep their results. If one candidate has no room
        or no kernel, keep none of them and return the reason; else return ""."""
        results: list[Result] = []
        measured: list[dict[str, Any]] = []
        for backward in (False, True):
            for kernel, tile, L in self.candidates(sizes, backward, every):
                if (backward, tile) in self.excluded:
                    continue
                entry = asdict(sizes) | {
                    "L": L, "kernel": kernel, "tile": tile, "backward": backward
                }  # fmt: skip
                answer = self.worker.ask(entry)
                if "left_out" in answer:
                    return str(answer["left_out"])
                if tile >= 0:
                    self.tried.add((backward, tile))
                times = answer.get("step_us", {})
                reason = answer.get("failed", "")
                if reason and tile >= 0:
                    self.excluded[backward, tile] = reason
                results.append(
                    Result(
                        str(sizes), backward, kernel, tile, L,
                        times.get("training"), times.get("inference"), reason,
                    )
                )  # fmt: skip
                measured += [
                    entry | {"training": purpose == "training", "step_us": us}
                    for purpose, us in times.items()
                ]
        results.sort(key=lambda r: (r.backward, r.training_us or float("inf")))
        self.results += results
        self.measured += measured
        return ""

    def keep(self) -> Path:
        """Add the results to the file, and make this process use them."""
        found = experience.Experience(self.measured, self.excluded)
        both = experience.add(self.gpu.key, found, self.tried)
        experience.apply(self.gpu.index, both)
        return experience.path_of(self.gpu.key)


def _gpu(device: torch.device) -> Gpu:
    if not torch.cuda.is_available():
        raise RuntimeError(
            "fusedrnn: tune measures kernels on a GPU, and torch sees none: "
            "torch.cuda.is_available() is False"
        )
    if not _binary.build_info()["cuda"]:
        raise RuntimeError(_binary.cuda_missing())
    index = torch.cuda.current_device() if device.index is None else device.index
    return Gpu(index, f"cuda:{index}", experience.key_of(index), ops.cuda_device(index))


def _common(tf32: bool) -> Iterator[Sizes]:
    """Classes of problems, the most used first: for each cell all B, and for each B all H."""
    rounds: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
        ((128, 256, 64, 512), (32, 64, 1, 128), (1,)),
        ((128, 256, 64, 512), (16, 256, 8), (1,)),
        ((128, 256, 64, 512), (32, 64, 1, 128), (2,)),
        ((192, 384, 32, 96, 160, 1024), (32, 64, 1, 128), (1,)),
    ]
    seen = set()
    for sizes, batches, directions in rounds:
        for mode, D, B, H in product(("LSTM", "GRU", "RNN_TANH"), directions, batches, sizes):
            if (mode, D, B, H) not in seen:
                seen.add((mode, D, B, H))
                yield Sizes(mode, H, B, D, tf32)


def tune(module: nn.Module, input: Tensor | PackedSequence) -> Tuning:
    """Measure every kernel for a layer and an input on their GPU, and plan by it from now on.

    A child process checks each of our kernels that can run the layer, the stepwise path and cuDNN
    against float64, and times them. That takes about half a minute. A kernel that computes
    wrongly, does not start, hangs or crashes is taken out. The measurement holds for a class of
    problems: this cell, H and B rounded up to one of a few sizes, D, any L, and torch's switch
    for TF32 in RNNs as it is now. It is kept in the cache folder (FUSEDRNN_CACHE, or fusedrnn in
    XDG_CACHE_HOME, by default ~/.cache) by GPU, driver, torch and build, and every later process
    reads it. ``python -m fusedrnn tune`` measures common classes.

    Args:
        module: a fusedrnn.RNN, LSTM or GRU (or torch.nn's), in float32, without projection.
        input: as the module takes it, on a GPU: (T, B, I), (B, T, I) with batch_first, (T, I), or
            a PackedSequence. The values do not matter.
    Returns:
        A :class:`~fusedrnn.tuning.Tuning`: microseconds a time step and layer, by pass and kernel.
    Raises:
        TypeError: a module that is not a layer, or an input that is not a sequence.
        ValueError: an input of a rank that the module does not take; a projection, or a dtype
            other than float32, because only cuDNN or the stepwise path can run these.
        RuntimeError: an input of another size than the module takes; no GPU; an input that is not
            on it; or a build without the CUDA half.
    """
    if not isinstance(module, nn.RNNBase):
        raise TypeError(f"module must be an RNN, LSTM or GRU, got {type(module).__name__}")
    plan = explain(module, input, gpu="sm_90")  # raises what the module would
    data = input.data if isinstance(input, PackedSequence) else input
    gpu = _gpu(data.device)
    if data.device.type != torch.device(gpu.device).type:
        raise RuntimeError(
            f"fusedrnn: tune measures where the input is, and it is on {data.device}: move module "
            "and input to the GPU"
        )
    if not plan.layers:
        raise ValueError(f"tune measures the kernels, and they are not used: {plan.reasons[0]}")
    layer = plan.layers[0]
    if plan.dtype != "float32" or layer.P:
        what = f"proj_size={layer.P}" if layer.P else plan.dtype
        raise ValueError(f"tune measures layers in float32 without projection, got {what}")
    mode = CELLS[plan.mode].family
    H, B = _C.cuda_class(layer.H, max(1, layer.B))
    sizes = Sizes(mode, H, B, layer.D, ops.rnn_takes_tf32())
    with Worker(gpu.device) as worker:
        session = Session(gpu, worker)
        missing = session.measure(sizes, every=True)
        file = session.keep()
    left_out = (f"{sizes}: {missing}",) if missing else ()
    return Tuning(str(gpu.key["gpu"]), file, tuple(session.results), left_out)


def common(gpu: Gpu, seconds: float, tell: Callable[[str], None] = print) -> Tuning:
    """Measure common classes of problems until the time is up; call ``tell`` with each result."""
    begin = time.monotonic()
    left_out: list[str] = []
    skipped = 0
    file = experience.path_of(gpu.key)
    with Worker(gpu.device) as worker:
        session = Session(gpu, worker)
        for sizes in _common(ops.rnn_takes_tf32()):
            if time.monotonic() - begin > seconds:
                skipped += 1
                continue
            reason = session.measure(sizes, every=False)
            if reason:
                left_out.append(f"{sizes}: {reason}")
            tell(_told(session, sizes, reason, time.monotonic() - begin))
            file = session.keep()
    if skipped:
        left_out.append(f"{skipped} classes less common: {seconds:g} s were over (--seconds)")
    return Tuning(str(gpu.key["gpu"]), file, tuple(session.results), tuple(left_out))


def _told(session: Session, sizes: Sizes, reason: str, elapsed: float) -> str:
    """One line about a class: the fastest kernel of each pass."""
    best = []
    for backward in (False, True):
        mine = [r for r in session.results if (r.sizes, r.backward) == (str(sizes), backward)]
        if mine and mine[0].training_us:
            _, which, kernel, us, *_ = mine[0].cells()
            best.append(f"{which} {kernel} {us} us")
    return f"{elapsed:5.1f} s  {sizes}: {reason or ', '.join(best)}"


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m fusedrnn tune``: 0 if all is well, 1 if a kernel failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(
        "python -m fusedrnn tune", description="Measures this GPU's kernels, for plans to go by."
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"to take ({SECONDS:g})")
    parser.add_argument("--device", default="cuda", help="the GPU, as in cuda:1 (the current one)")
    options = parser.parse_args(argv)
    try:
        gpu = _gpu(torch.device(options.device))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    found = common(gpu, options.seconds, lambda line: print(line, flush=True))
    failed = [result for result in found.results if result.reason]
    for result in failed:
        print("failed:", *result.cells()[:3], result.reason, sep="  ")
    for what in found.left_out:
        print(f"left out: {what}")
    print(f"{found.gpu}: kept in {found.file}")
    return 1 if failed else 0

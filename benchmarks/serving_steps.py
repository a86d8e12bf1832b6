"""Single steps of streams for serving.py: how long one takes, at a beat, and in several threads."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import fusedrnn
from benchmarks import peers, timing
from benchmarks.callers import calls_a_second
from benchmarks.report.serving import Beat, Stepped, Threaded

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}
PERCENTILES = (50.0, 99.0, 99.9)
BEAT_SECONDS, BEATS = 0.01, 3000
ROUNDS, THREAD_SECONDS = 7, 0.25
COUNTS = (1, 2, 4)
# On a core of its own until its parent ends: products of matrices of 16 MB, which also take the
# last cache and the memory's bandwidth.
LOAD = """
import os, sys, torch
os.sched_setaffinity(0, {int(sys.argv[1])})
torch.set_num_threads(1)
a, parent = torch.randn(2000, 2000), os.getppid()
while os.getppid() == parent:
    a @ a
"""

Step = Callable[[], Any]


@dataclass(frozen=True)
class Streamed:
    """LSTMs of which B rows go on together."""

    H: int
    B: int = 1
    L: int = 1
    T: int = 1  # steps in a call of threads

    @property
    def name(self) -> str:
        layers = f" L{self.L}" * (self.L > 1)
        calls = f", {self.T} steps a call" * (self.T > 1)
        return f"LSTM B{self.B} I{self.H} H{self.H}{layers}{calls}"

    def modules(self) -> tuple[fusedrnn.LSTM, nn.LSTM]:
        torch.manual_seed(0)
        theirs = nn.LSTM(self.H, self.H, self.L).eval()
        ours = fusedrnn.LSTM(self.H, self.H, self.L).eval()
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs

    def input(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((self.B, self.H), np.float32)


def carried(call: Callable[[Any], tuple[Any, Any]], state: Any) -> Step:
    """A step that goes on from the last one's state."""

    def step() -> Any:
        nonlocal state
        output, state = call(state)
        return output

    return step


def onnx_step(module: nn.LSTM, x: np.ndarray, quantized: bool) -> Step:
    """ONNX Runtime's, whose states are inputs and outputs, on one thread."""
    import onnxruntime

    from benchmarks.serving import quantized_by_onnxruntime

    state = (torch.zeros(module.num_layers, len(x), module.hidden_size),) * 2
    names = ["x", "h", "c"]
    model = peers.onnx_of(module, torch.from_numpy(x)[None], state, names=names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    given = quantized_by_onnxruntime(model) if quantized else model
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])

    def call(state: tuple[Any, Any]) -> tuple[Any, Any]:
        y, *new = session.run(None, {"x": x[None], "h": state[0], "c": state[1]})
        return y[0], new

    return carried(call, tuple(s.numpy() for s in state))


def steppers(case: Streamed, installed: Sequence[str]) -> dict[str, Step]:
    """One step of all rows, by name: frozen streams, torch.nn's layer and cell, ONNX Runtime."""
    ours, theirs = case.modules()
    x = case.input()
    found: dict[str, Step] = {}
    for name, dtype in DTYPES.items():
        stream = fusedrnn.freeze(ours, dtype).stream(case.B)
        found[f"frozen {name}"] = partial(stream.step, x)
    one = torch.from_numpy(x)[None]
    zeros = torch.zeros(case.L, case.B, case.H)
    found["torch.nn.LSTM"] = carried(lambda state: theirs(one, state), (zeros, zeros))
    if case.L == 1:
        cell = nn.LSTMCell(case.H, case.H)
        own = zip(cell.parameters(), theirs.parameters(), strict=True)
        for parameter, value in own:
            parameter.data.copy_(value)

        def called(state: Any) -> tuple[Any, Any]:
            h, c = cell(one[0], state)
            return h, (h, c)

        found["torch.nn.LSTMCell"] = carried(called, (zeros[0], zeros[0]))
    if "ONNX Runtime" in installed:
        found["ONNX Runtime"] = onnx_step(theirs, x, False)
        found["ONNX Runtime int8"] = onnx_step(theirs, x, True)
    return found


def held(found: dict[str, Step], about: str) -> None:
    """Raises AssertionError where a side's third step is not ours."""
    results = {}
    for name, step in found.items():
        for _ in range(3):
            output = step()
        results[name] = torch.as_tensor(output).detach().clone().view(-1)
    expected = results["frozen float32"]
    for name, result in results.items():
        low = "int8" in name or "bfloat16" in name
        error = timing.disagreement((expected,), (result,))
        if not error <= (0.15 if low else 1e-4):
            raise AssertionError(f"{about}: {name} differs by {error:.1e} of the largest")


def kernels(case: Streamed, steps: int) -> dict[str, Step]:
    """Ours over many steps in one call: what a step takes without its host part, and less, since
    W_ih is read once for several steps."""
    ours, _ = case.modules()
    x = torch.from_numpy(case.input()).expand(steps, -1, -1).contiguous()
    found: dict[str, Step] = {}
    for name, dtype in DTYPES.items():
        stream = fusedrnn.freeze(ours, dtype).stream(case.B)
        found[f"frozen {name}"] = partial(stream.run, x)
    return found


def quartiles(calls: dict[str, Step], seconds: float) -> dict[str, float]:
    """Microseconds a call, in turn: the lower quartile, since others use the machine too."""
    once = {name: timing.warm(call, seconds=min(0.05, seconds)) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    first = next(iter(calls))
    while time.perf_counter() < end or len(taken[first]) < 3:
        for name, call in calls.items():
            count = max(1, math.ceil(timing.ROUND_SECONDS / once[name]))
            timing.seconds_of(call, max(1, count // 4))  # the last side's weights are in the caches
            taken[name].append(timing.seconds_of(call, count))
    return {name: float(np.quantile(found, 0.25)) * 1e6 for name, found in taken.items()}


@torch.inference_mode()
def steps(installed: Sequence[str], quick: bool) -> Iterator[Stepped]:
    """Steps of 1 to 64 rows; for one row how much of it is not the kernel."""
    cases = [Streamed(H, B) for H in (128, 512) for B in (1, 4, 16, 64)]
    cases += [Streamed(128, L=2), Streamed(1)]
    seconds, T = (2.0, 1000) if not quick else (0.01, 20)
    for case in [cases[0], cases[-2]] if quick else cases:
        found = steppers(case, installed)
        held(found, case.name)
        us = quartiles(found, seconds)
        of_many = quartiles(kernels(case, T), seconds / 2) if case.B == 1 else {}
        yield Stepped(case.name, case.B, us, {name: value / T for name, value in of_many.items()})


@contextmanager
def loaded() -> Iterator[bool]:
    """The first core for this process, and work for the last one; whether there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield False
        return
    other = subprocess.Popen([sys.executable, "-c", LOAD, str(cores[-1])])
    os.sched_setaffinity(0, cores[:1])
    try:
        time.sleep(2.0)
        yield True
    finally:
        os.sched_setaffinity(0, cores)
        other.kill()
        other.wait()


def percentiles(seconds: Sequence[float]) -> list[float]:
    """In microseconds."""
    return [float(value) * 1e6 for value in np.percentile(seconds, PERCENTILES)]


@torch.inference_mode()
def beats(installed: Sequence[str], quick: bool) -> Iterator[Beat]:
    """A step of each side at every beat, in another order each time."""
    count, pause = (BEATS, BEAT_SECONDS) if not quick else (10, 0.001)
    with loaded() as other:
        for case in (Streamed(128), Streamed(512)):
            found = steppers(case, installed)
            names = [*found]
            taken: dict[str, list[float]] = {name: [] for name in names}
            at = time.perf_counter() + pause
            for i in range(count):
                time.sleep(max(0.0, at - time.perf_counter()))
                turn = i % len(names)
                for name in names[turn:] + names[:turn]:
                    start = time.perf_counter()
                    found[name]()
                    taken[name].append(time.perf_counter() - start)
                at = max(at + pause, time.perf_counter())
            us = {name: percentiles(each) for name, each in taken.items()}
            yield Beat(case.name, count, other, us)


def work(case: Streamed, dtype: torch.dtype | None) -> Callable[[], Step]:
    """Makes calls of streams of one layer, each with its own stream and input."""
    frozen = fusedrnn.freeze(case.modules()[0], dtype)

    def made() -> Step:
        stream, x = frozen.stream(case.B), case.input()
        if case.T == 1:
            return lambda: stream.step(x)
        many = torch.from_numpy(x).expand(case.T, -1, -1).contiguous()
        return lambda: stream.run(many)

    return made


def in_threads(installed: Sequence[str], quick: bool) -> Iterator[Threaded]:
    """Steps a second of 1, 2 and 4 Python threads, a stream each, of one layer."""
    cases = [
        Streamed(128),
        Streamed(128, T=10),
        Streamed(512),
        Streamed(128, B=16),
        Streamed(1024),
    ]
    rounds, seconds = (ROUNDS, THREAD_SECONDS) if not quick else (1, 0.01)
    for case in cases[:2] if quick else cases:
        for name in ("float32", "int8"):
            made = work(case, DTYPES[name])
            found: list[list[float]] = [[] for _ in COUNTS]
            for _ in range(rounds):
                for rates, count in zip(found, COUNTS, strict=True):
                    calls = [made() for _ in range(count)]
                    rates.append(calls_a_second(calls, seconds) * case.T)
            rates = [statistics.median(each) for each in found]
            gain = statistics.median(b / a for a, b in zip(found[0], found[-1], strict=True))
            yield Threaded(case.name, name, [*COUNTS], rates, gain)

"""An inference server's case: several Python threads call one module at once.

    python -m benchmarks callers --out DIR [--callers 1,2,4] [--quick]

Writes DIR/callers.jsonl and from it callers.md: calls a second of all callers together, fusedrnn's
and torch.nn's in turn. Every call runs on one thread of its own.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks import options, timing
from benchmarks.cases import INFERENCE
from benchmarks.layers import Layer
from benchmarks.report.callers import KIND, Measured, page
from benchmarks.report.place import beside
from benchmarks.results import line, write

ROUNDS, SECONDS = 15, 0.2  # of a side in a round
CASES = [
    Layer(group="Reuters stack", cell="LSTM", step=INFERENCE, T=100, B=B, I=128, H=128, L=2)
    for B in (1, 8)
]


def calls_a_second(calls: Sequence[Callable[[], Any]], seconds: float) -> float:
    """Of all calls together, each by a thread of its own."""
    counts = [0] * len(calls)
    start = threading.Barrier(len(calls) + 1)
    stop = threading.Event()

    def work(i: int) -> None:
        torch.set_num_threads(1)  # OpenMP keeps it by thread
        call = calls[i]
        with torch.inference_mode():
            call()
            start.wait()
            while not stop.is_set():
                call()
                counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def measure(layer: Layer, callers: int, rounds: int, seconds: float) -> Measured:
    torch.manual_seed(0)
    modules, (x, slope) = layer.modules(), layer.inputs()
    sides = [layer.call(module, x, slope) for module in modules]
    with torch.inference_mode():
        if timing.disagreement(sides[0](), sides[1]()) > 1e-4:
            raise AssertionError(f"{layer.shape}: results differ")
    found = [[calls_a_second([side] * callers, seconds) for side in sides] for _ in range(rounds)]
    return Measured(
        f"{layer.group}: {layer.cell} {layer.shape}",
        callers,
        statistics.median(ours for ours, _ in found),
        statistics.median(theirs for _, theirs in found),
        statistics.median(ours / theirs for ours, theirs in found),
    )


def main(argv: Sequence[str]) -> int:
    top = options.measuring(KIND, "Times several callers of one module.")
    top.add_argument(
        "--callers",
        type=options.numbers,
        default=[1, 2, 4],
        help="how many at once, each measured (1,2,4)",
    )
    arguments = top.parse_args(argv)
    cases, rounds, seconds = CASES, ROUNDS, SECONDS
    if arguments.quick:
        cases, rounds, seconds = [replace(case, T=5) for case in CASES], 2, 0.02
    measured = [
        line(measure(case, callers, rounds, seconds))
        for case in cases
        for callers in arguments.callers
    ]
    path = arguments.out / f"{KIND}.jsonl"
    write(path, KIND, timing.place(), measured)
    return beside(path, page(path))

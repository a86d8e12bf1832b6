"""Bytes for serving.py: of packed weights, of a file, and what loading it adds to a process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import fusedrnn
from benchmarks.peak import ROOT, resident
from benchmarks.report.serving import Remembered
from benchmarks.serving_steps import DTYPES

SIZES = ((512, 2), (1024, 2))  # H, L of an LSTM


def added(small: str, large: str) -> float:
    """MiB that loading the large file and one step add, in this process, to which the small one has
    brought all code."""

    def used(path: str) -> Any:
        layer = torch.load(path, weights_only=False)
        with torch.inference_mode():
            layer(torch.zeros(1, 1, layer.input_size))
        return layer

    torch.set_num_threads(1)
    kept = [used(small)]
    before = resident("VmRSS")
    kept.append(used(large))
    return resident("VmRSS") - before


def answer() -> None:
    """In a process of its own: prints what was added."""
    print(json.dumps(added(*sys.argv[1:])))


def of(layer: Any, tiny: Any, side: str, name: str, packed: int) -> Remembered:
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.pt"), Path(folder, "large.pt")
        torch.save(tiny, small)
        torch.save(layer, large)
        # As in peak.py: what a process has resident is what its code took so far.
        code = "from benchmarks.serving_memory import answer; answer()"
        words = [sys.executable, "-c", code, str(small), str(large)]
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        mebibytes = large.stat().st_size / 2**20
    return Remembered(name, side, packed / 2**20, mebibytes, json.loads(done.stdout))


def memory(installed: Sequence[str], quick: bool) -> Iterator[Remembered]:
    """Of a plain layer, and frozen in each dtype."""
    for H, L in ((64, 1),) if quick else SIZES:
        layer, tiny = fusedrnn.LSTM(H, H, L).eval(), fusedrnn.LSTM(8, 8).eval()
        name = f"LSTM I{H} H{H} L{L}"
        plain = sum(weight.nbytes for weight in layer.parameters())
        yield of(layer, tiny, "fusedrnn.LSTM", name, plain)
        for dtype in DTYPES:
            frozen, first = (fusedrnn.freeze(each, DTYPES[dtype]) for each in (layer, tiny))
            yield of(frozen, first, f"frozen {dtype}", name, frozen._stack.bytes)

"""The most memory that a call takes at once, read in a process of its own.

What a process has resident is what its torch, its C++ and its Python took so far, and malloc keeps
what was freed. So each question has a fresh process, which first makes the same call small: what
runs has to be loaded before it is counted.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.sequence_cases import Sequences

ROOT = Path(__file__).resolve().parents[1]


def resident(field: str) -> float:
    """MiB; VmRSS: now; VmHWM: at most, since reset()."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}")


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def taken(case: Sequences, small: Sequences, name: str, threads: int) -> tuple[float, float]:
    """What `of` gives, of this process."""
    torch.set_num_threads(threads)
    for at in (small, case):
        call = next(side.call for side in at.all_sides() if side.name == name)
        reset()
        before, start = resident("VmHWM"), time.perf_counter()
        results = call()
        seconds = time.perf_counter() - start
        most = resident("VmHWM") - before - sum(t.nbytes for t in results) / 2**20
    return max(0.0, most), seconds


def answer() -> None:
    """In the process of its own: reads the question, and prints what was taken."""
    print(json.dumps(taken(*pickle.load(sys.stdin.buffer))))


def of(case: Sequences, small: Sequences, name: str, threads: int) -> tuple[float, float]:
    """MiB that a side's call takes beside its input, its results and the weights, and the seconds
    of that call. `small` is a case whose call loads the same code."""
    # From the root, and not by multiprocessing: a spawned process would find the `benchmarks` that
    # torchrl installs.
    done = subprocess.run(
        [sys.executable, "-c", "from benchmarks.peak import answer; answer()"],
        cwd=ROOT,
        input=pickle.dumps((case, small, name, threads)),
        stdout=subprocess.PIPE,
        check=True,
    )
    most, seconds = json.loads(done.stdout)
    return most, seconds

"""Memory: none is kept between calls of other shapes, training takes no more than torch.nn, and
where there is not enough an exception says so.

What a process has resident is what its C++ and its Python took; so each question has a process of
its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHARED = """
import torch
from torch import nn
import fusedrnn
from problems import Problem, inputs, make
torch.set_num_threads(1)
torch.manual_seed(0)

def resident(field):
    # VmRSS: now; VmHWM: at most, since reset(). In MiB.
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) / 1024 for l in lines if l.startswith(field))

def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
"""


def run(code: str) -> str:
    """What ``code`` prints in a fresh process, which finds this folder and the package under test:
    from the root it would find the checkout's, which may have no compiled half."""
    done = subprocess.run(
        [sys.executable, "-c", SHARED + code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_ten_thousand_calls_over_changing_shapes_leave_nothing_behind() -> None:
    # Each shape comes once in the first half, when the allocator's own memory settles, and again.
    said = run("""
modules = [getattr(fusedrnn, name)(5, 9, bidirectional=True) for name in ("RNN", "LSTM", "GRU")]

def calls(first, last):
    for i in range(first, last):
        j = i % 5000
        x = torch.randn(1 + j % 13, 1 + j * 7 % 31, 5)
        y = modules[j % 3](x)[0]
        if j % 2:
            y.sum().backward()

calls(0, 5000)
before = resident("VmRSS")
calls(5000, 10000)
print(resident("VmRSS") - before)
""")
    assert float(said) < 4


PEAK = """
p = Problem({problem})
namespace = {{"fusedrnn": fusedrnn, "torch": nn}}["{by}"]
module = make(p, namespace, dtype=p.dtype)
# The code that runs has to be loaded before it is counted.
first = make(Problem(p.mode, P=2 * bool(p.P), dtype=p.dtype, L=p.L), namespace, dtype=p.dtype)
first(torch.randn(20, 3, 4, dtype=p.dtype))[0].sum().backward()
input, _, _ = inputs(p, p.dtype)
reset()
before = resident("VmHWM")
y = module(input)[0]
y = y if isinstance(y, torch.Tensor) else y.data
y.backward(torch.ones_like(y))
print(resident("VmHWM") - before)
"""

TRAINED = [
    "'LSTM', T=100, B=64, I=128, H=128, L=2",
    "'RNN_TANH', T=100, B=64, I=128, H=128, L=2",
    "'GRU', T=100, B=32, I=28, H=256",
    "'LSTM', T=50, B=64, I=512, H=512",
    "'LSTM', T=100, B=32, I=300, H=150, bidirectional=True",
    "'LSTM', T=200, B=64, I=128, H=128, form='sorted'",
    "'LSTM', T=100, B=64, I=128, H=256, P=128",
    "'GRU', T=1000, B=64, I=16, H=17",
]


@pytest.mark.parametrize("problem", TRAINED)
def test_training_takes_at_most_the_memory_that_torch_takes(problem: str) -> None:
    ours, theirs = (float(run(PEAK.format(problem=problem, by=by))) for by in ("fusedrnn", "torch"))
    assert ours <= theirs


def test_too_little_memory_is_a_runtime_error_and_the_next_call_works() -> None:
    run("""
import resource
module = fusedrnn.LSTM(64, 64, 2)
small = torch.randn(20, 16, 64)
expected = module(small)[0]
expected.sum().backward()  # threads are made here, not under the limit
taken = int(resident("VmSize") * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (taken + 200 * 2**20, resource.RLIM_INFINITY))
large = torch.randn(1, 1, 64).expand(2000, 200, 64)
steps = torch.randn(400, 64, 64)  # 6 MiB: forward fits, what backward needs as well, for once
for x in (large, steps.repeat(1, 8, 1)):
    for training in (True, False):
        try:
            with torch.set_grad_enabled(training):
                y = module(x)[0]
                if training:
                    kept = torch.empty(60 * 2**18)  # 60 MiB, so that backward is what fails
                    y.sum().backward()
        except RuntimeError as error:
            assert "alloc" in str(error), error
            raised = True
        else:
            raised = False
        assert raised or x is not large
        module.zero_grad()
        assert torch.equal(module(small)[0], expected)
        module(small)[0].sum().backward()
""")

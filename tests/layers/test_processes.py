"""Threads and processes: many through one module, forks, workers, and an interpreter that ends
while a layer runs.

Everything runs in a process of its own under a time limit, which is only there so that what hangs
is a failure. Results must be those of a quiet process, to the bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = """
import os, sys, threading
import torch
from torch import nn
import fusedrnn
torch.set_num_threads(2)

def step(module, x):
    # Output and gradients; large enough for two threads.
    y = module(x)[0]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))]

def same(a, b):
    return all(map(torch.equal, a, b))

torch.manual_seed(0)
module = fusedrnn.{name}(32, 48, 2, bidirectional=True)
xs = [torch.randn(20, 16, 32) for _ in range(8)]
"""
NAMES = ("RNN", "LSTM", "GRU", "MGU")


def ended(*arguments: str, limit: int = 120) -> subprocess.CompletedProcess[str]:
    """How Python ended, not begun from the root: there it would find the checkout's package, which
    may have no compiled half."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONFAULTHANDLER": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=limit,
    )


def run(code: str, name: str = "LSTM") -> str:
    """What ``code`` prints; the module and its inputs are made before it."""
    done = ended("-c", COMMON.format(name=name) + code)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    # Which ends a thread and not the process.
    assert "Exception in thread" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_eight_threads_through_one_module_have_the_bits_of_one(name: str) -> None:
    run(
        """
expected = [step(module, x) for x in xs]
wrong = []

def work(i):
    for _ in range(3):
        if not same(step(module, xs[i]), expected[i]):
            wrong.append(i)

threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert not wrong, wrong
""",
        name,
    )


def test_weights_loaded_while_other_threads_run_crash_nothing() -> None:
    run("""
states = [{k: v + i for k, v in module.state_dict().items()} for i in range(2)]
stop = threading.Event()

def work(x):
    while not stop.is_set():
        with torch.no_grad():
            module(x)

threads = [threading.Thread(target=work, args=(x,)) for x in xs[:4]]
for t in threads: t.start()
for i in range(50):
    module.load_state_dict(states[i % 2], assign=i % 3 == 0)
stop.set()
for t in threads: t.join()
""")


def test_the_number_of_threads_may_change_between_calls_and_in_other_threads() -> None:
    run("""
expected = step(module, xs[0])
for n in (1, 2, 3, 8, 1, 2):
    torch.set_num_threads(n)
    assert same(step(module, xs[0]), expected), n

def work(n):
    torch.set_num_threads(n)
    for _ in range(5):
        assert same(step(module, xs[0]), expected), n
    done.append(n)

done = []
threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 4)]
for t in threads: t.start()
for t in threads: t.join()
assert len(done) == 4, done
""")


@pytest.mark.parametrize("name", NAMES)
def test_a_forked_child_computes_what_its_parent_does(name: str) -> None:
    # With torch.nn it hangs: GNU's OpenMP does not survive a fork.
    run(
        """
expected = step(module, xs[0])
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if same(step(module, xs[0]), expected) else 3)
    assert same(step(module, xs[0]), expected)
    assert os.waitpid(child, 0)[1] == 0
""",
        name,
    )


def test_a_child_forked_by_a_child_or_by_a_thread_computes_too() -> None:
    run("""
expected = step(module, xs[0])

def fork(depth):
    child = os.fork()
    if child == 0:
        good = same(step(module, xs[0]), expected)
        if depth:
            fork(depth - 1)
        os._exit(0 if good else 3)
    assert os.waitpid(child, 0)[1] == 0
    done.append(depth)

done = []
step(module, xs[0])
fork(2)

def work():
    step(module, xs[1])
    fork(0)

thread = threading.Thread(target=work)
thread.start()
thread.join()
assert len(done) == 2, done
assert same(step(module, xs[0]), expected)
""")


SCRIPT = """
import sys
from pathlib import Path
import torch
import fusedrnn
from torch import multiprocessing

def work(module, x, queue):
    y = module(x)[0]
    y.square().sum().backward()
    gradients = [p.grad for p in module.parameters()]
    queue.put([t.detach().numpy() for t in (y, *gradients)])
    queue.close()
    queue.join_thread()

class Rows(torch.utils.data.Dataset):
    def __init__(self, module):
        self.module = module.requires_grad_(False)
        self.x = torch.randn(12, 20, 32)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return self.module(self.x[i])[0]

if __name__ == "__main__":
    method, use = sys.argv[1:]
    torch.set_num_threads(2)
    torch.manual_seed(0)
    module = fusedrnn.LSTM(32, 48, 2, bidirectional=True)
    x = torch.randn(20, 16, 32)
    module(x)[0].square().sum().backward()
    if use == "workers":
        rows = Rows(module)
        expected = torch.stack([rows[i] for i in range(12)])
        loader = torch.utils.data.DataLoader(
            rows, 3, num_workers=2, multiprocessing_context=method, persistent_workers=True
        )
        for _ in range(2):
            assert torch.equal(torch.cat(list(loader)), expected)
    else:
        expected = [module(x)[0].detach(), *(p.grad.clone() for p in module.parameters())]
        module.zero_grad()
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        processes = [context.Process(target=work, args=(module, x, queue)) for _ in range(2)]
        for process in processes: process.start()
        for _ in processes:
            found = [torch.from_numpy(a) for a in queue.get(timeout=150)]
            assert all(map(torch.equal, found, expected))
        for process in processes: process.join()
        assert [process.exitcode for process in processes] == [0, 0]
    print("done")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("use", ["processes", "workers"])
def test_processes_and_loader_workers_compute_what_their_parent_does(
    method: str, use: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = ended(str(script), method, use, limit=180)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stdout == "done\n"


ENDING = """
running = threading.Semaphore(0)

def work(x):
    for _ in range(rounds):
        step(module, x)
        running.release()

for x in xs[:3]:
    threading.Thread(target=work, args=(x,), daemon=daemon).start()
for _ in range(6):
    running.acquire()
print("ending", flush=True)
"""


def test_the_interpreter_waits_for_threads_that_run_a_layer() -> None:
    assert run("rounds, daemon = 8, False" + ENDING) == "ending\n"


def test_the_interpreter_ends_as_with_torch_while_daemons_run_a_layer() -> None:
    # Before Python 3.14 a daemon that asks for the lock of an ended interpreter is unwound through
    # torch's binding, which aborts: with torch.nn as here. It must neither hang nor crash.
    done = ended("-c", COMMON.format(name="LSTM") + "rounds, daemon = 10**9, True" + ENDING)
    assert done.stdout == "ending\n", done.stderr
    assert done.returncode == 0 or (
        done.returncode == -signal.SIGABRT and "terminate called" in done.stderr
    ), f"{done.returncode}\n{done.stderr}"


def test_the_interpreter_ends_while_daemons_are_in_streams() -> None:
    streams = """
frozen = fusedrnn.freeze(fusedrnn.LSTM(64, 256, 2), torch.int8)
step = lambda _, x: frozen.stream(16).run(x.repeat(1, 1, 2))
rounds, daemon = 10**9, True
"""
    done = ended("-c", COMMON.format(name="LSTM") + streams + ENDING)
    assert done.stdout == "ending\n", done.stderr
    assert done.returncode in (0, -signal.SIGABRT), f"{done.returncode}\n{done.stderr}"


def test_forks_while_threads_stream_compute_what_their_parent_does() -> None:
    run("""
frozen = fusedrnn.freeze(fusedrnn.GRU(32, 48, 2), torch.bfloat16)
expected = [frozen(x)[0] for x in xs]
stop = threading.Event()

def work(x):
    while not stop.is_set():
        frozen.stream(16).run(x)

threads = [threading.Thread(target=work, args=(x,)) for x in xs[:2]]
for t in threads: t.start()
children = []
for i in range(4):
    child = os.fork()
    if child == 0:
        good = all(torch.equal(frozen.stream(16).run(x), y) for x, y in zip(xs, expected))
        os._exit(0 if good else 1)
    children.append(child)
ended = [os.waitpid(child, 0)[1] for child in children]
stop.set()
for t in threads: t.join()
assert ended == [0] * 4, ended
""")


def test_a_second_derivative_at_exit_finds_no_dead_interpreter() -> None:
    # The function that makes them is Python's, and outlives the interpreter in a C++ global.
    run("""
import atexit

@atexit.register
def late():
    x = xs[0][:2].clone().requires_grad_()
    (g,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    g.square().sum().backward()
    assert x.grad is not None
""")


def test_a_module_that_dies_with_its_graph_in_a_thread_frees_all() -> None:
    run("""
def work(x):
    for _ in range(5):
        own = fusedrnn.LSTM(32, 48)
        y = own(x)[0].sum()
        del own
        y.backward()

threads = [threading.Thread(target=work, args=(x,)) for x in xs]
for t in threads: t.start()
for t in threads: t.join()
""")

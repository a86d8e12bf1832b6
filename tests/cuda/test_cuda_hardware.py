"""What takes a GPU, or two, besides a GPU's kernels: several streams at once, graphs that share
memory, replicas, memory over many steps, devices that allow less. test_cuda_glue.py runs this file
where there is no GPU, on the CPU, so that its first run on one is not its first run at all.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn import _C
from support import distributed_worker as worker
from support.gpu import NAMES, NEEDS_GPU, captured, step
from support.oracle import packed, tensors_of
from support.planning import OURS, only, problem
from support.problems import MODES, Problem, check

pytestmark = NEEDS_GPU


HIDDEN = {"block": 100, "cluster": 150, "stepwise": 60}  # a size that each kernel takes
T, B, I = 9, 4, 7  # noqa: E741

Result = TypeVar("Result")
Call = Callable[[], Result]


def kernel_of(limits: dict[str, Any], mode: str, H: int, allowed: _C.Restriction = OURS) -> str:
    """The kernel that the plan takes for a device of these limits; ValueError where none can."""
    plan = _C.cuda_plan(problem(mode, T, B, H, I=I), limits, allowed)
    return str(plan["kernel"])


@pytest.fixture(params=HIDDEN)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of kernel, forced."""
    name = str(request.param)
    limits = _C.cuda_device(torch.cuda.current_device())
    try:
        kernel_of(limits, "GRU", HIDDEN[name], only(name))
    except ValueError:
        pytest.skip(f"this GPU has no {name} kernel")
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", name)
    return name


def layer(name: str, kernel: str, **options: Any) -> Any:
    torch.manual_seed(3)
    return getattr(fusedrnn, name)(I, HIDDEN[kernel], **options)


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """To the bit: whatever runs beside it, a layer computes in the same order."""
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"tensor {i}"


# --- streams


def on_streams(calls: Sequence[Call[Result]], *, late: int = 0) -> list[Result]:
    """Each call on a stream of its own, all begun before any is waited for. `late` cycles pass on
    each stream before its call's work begins."""
    current = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in calls]
    found = []
    for stream, call in zip(streams, calls, strict=True):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            if late:
                torch.cuda._sleep(late)
            found.append(call())
    for stream in streams:
        current.wait_stream(stream)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_two_layers_at_once_compute_what_they_do_alone(name: str, kernel: str) -> None:
    modules = [layer(name, kernel, bidirectional=True) for _ in range(2)]
    inputs = [torch.randn(T, B, I, requires_grad=True) for _ in modules]
    pairs = list(zip(modules, inputs, strict=True))
    expected = [step(*pair) for pair in pairs]
    torch.cuda.synchronize()
    for _ in range(5):
        found = on_streams([partial(step, *pair) for pair in pairs])
        for a, b in zip(found, expected, strict=True):
            same(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_waits_for_the_input_that_another_makes(name: str, kernel: str) -> None:
    module = layer(name, kernel)
    x = torch.randn(T, B, I)
    expected = step(module, x.clone().requires_grad_())
    late = torch.zeros_like(x)

    def make() -> Tensor:
        return late.copy_(x)

    on_streams([make], late=100_000_000)  # zeros until long after the call below was made
    same(on_streams([lambda: step(module, late.requires_grad_())])[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_backward_follows_forward_to_its_stream(name: str, kernel: str) -> None:
    module = layer(name, kernel)
    x = torch.randn(T, B, I, requires_grad=True)
    leaves = [x, *module.parameters()]
    expected = torch.autograd.grad(module(x)[0].sum(), leaves)
    torch.cuda.synchronize()
    (y,) = on_streams([lambda: module(x)[0]], late=100_000_000)
    same(torch.autograd.grad(y.sum(), leaves), expected)  # called from the current stream


@pytest.mark.parametrize("name", NAMES)
def test_an_output_kept_for_another_stream_is_not_overwritten(name: str, kernel: str) -> None:
    module = layer(name, kernel).requires_grad_(False)
    x = torch.randn(T, B, I)
    expected = module(x)[0].clone()
    producer, current = torch.cuda.Stream(), torch.cuda.current_stream()
    producer.wait_stream(current)
    with torch.cuda.stream(producer):
        y = module(x)[0]
    current.wait_stream(producer)
    torch.cuda._sleep(100_000_000)
    kept = y + 0  # long after what the producer goes on to do
    y.record_stream(current)
    shape = y.shape
    del y
    with torch.cuda.stream(producer):
        spoilt = [torch.full(shape, torch.nan) for _ in range(20)]
    torch.cuda.synchronize()
    assert torch.equal(kept, expected)
    del spoilt


# --- graphs


@pytest.mark.parametrize("packed_rows", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_graphs_of_one_pool_replay_in_any_order(name: str, packed_rows: bool, kernel: str) -> None:
    module = layer(name, kernel, num_layers=2)
    pool = torch.cuda.graph_pool_handle()
    inputs: list[Any] = []
    for lengths in ((9, 7, 7, 2), (5, 5, 1, 1)):
        rows = packed([torch.randn(n, I) for n in lengths])
        x = (
            rows._replace(data=rows.data.detach())
            if packed_rows
            else torch.randn(max(lengths), 4, I)
        )
        inputs.append(x)
    leaves = [(x.data if packed_rows else x).requires_grad_() for x in inputs]
    made = [captured(partial(step, module, x), pool) for x in inputs]
    for which in (0, 1, 1, 0):
        with torch.no_grad():
            leaves[which].copy_(torch.randn_like(leaves[which]))
            module.weight_hh_l1.mul_(0.9)
        made[which][0].replay()
        torch.testing.assert_close(made[which][1], step(module, inputs[which]))


@pytest.mark.parametrize("name", NAMES)
def test_an_input_made_within_the_graph_is_read_anew(name: str, kernel: str) -> None:
    module = layer(name, kernel)
    source = torch.randn(T, B, I)

    def call() -> tuple[Tensor, ...]:
        return tensors_of(module(source * 2 + 1))

    with torch.no_grad():
        graph, results = captured(call, torch.cuda.graph_pool_handle())
        for _ in range(3):
            source.copy_(torch.randn_like(source))
            graph.replay()
            torch.testing.assert_close(results, call())


@pytest.mark.parametrize("name", NAMES)
def test_layers_on_two_streams_are_captured_as_they_run(name: str, kernel: str) -> None:
    modules = [layer(name, kernel) for _ in range(2)]
    x = torch.randn(T, B, I, requires_grad=True)

    def call() -> list[tuple[Tensor, ...]]:
        return on_streams([partial(step, module, x) for module in modules])

    graph, results = captured(call)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(results, call())


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_training_step_trains_as_an_eager_one(name: str, kernel: str) -> None:
    model = layer(name, kernel, num_layers=2)
    eager = copy.deepcopy(model)
    x = torch.randn(T, B, I)

    def trainer(module: Any) -> Call[Tensor]:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

        def call() -> Tensor:
            optimizer.zero_grad(set_to_none=False)
            loss: Tensor = module(x)[0].square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return call

    train, train_eagerly = trainer(model), trainer(eager)
    graph, loss = captured(train)
    torch.cuda.synchronize()
    eager.load_state_dict(model.state_dict())  # warming up has trained the one
    for _ in range(5):
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(loss, train_eagerly())
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --- memory


@pytest.mark.parametrize("name", NAMES)
def test_fifty_training_steps_take_the_memory_of_the_first(name: str, kernel: str) -> None:
    module = layer(name, kernel, num_layers=2, bidirectional=True)
    optimizer = torch.optim.Adam(module.parameters())
    inputs: list[Any] = [torch.randn(T, B, I), packed([torch.randn(n, I) for n in (9, 6, 1)])]

    def train() -> None:
        for x in inputs:
            optimizer.zero_grad()
            tensors_of(module(x))[0].square().mean().backward()
            optimizer.step()

    def measured() -> tuple[int, int]:
        torch.cuda.reset_peak_memory_stats()
        on_streams([train])
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()

    for _ in range(3):
        before = measured()
    for _ in range(50):
        assert measured() == before


# --- devices that allow less, as a slice of a GPU does


LESS: dict[str, dict[str, Any]] = {
    "no clusters": {"clusters": [0, 0, 0, 0, 0]},
    "no cluster above four blocks": {"clusters": [1, 8, 4, 0, 0]},
    "little shared memory": {"shared_bytes": 48 << 10},
    "few multiprocessors": {"multiprocessors": 14, "clusters": [14, 7, 3, 1, 0]},
}


@pytest.mark.parametrize("H", [64, 128, 256, 512])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("less", LESS)
def test_what_a_smaller_device_takes_runs_and_is_as_accurate(
    less: str, mode: str, H: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = _C.cuda_device(torch.cuda.current_device()) | LESS[less]
    taken = kernel_of(limits, mode, H)
    assert taken in HIDDEN
    if less == "no clusters":
        assert taken != "cluster"
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", taken)
    check(Problem(mode, T=6, B=5, I=3, H=H, hx="grad"))


# --- replicas


def replicas(where: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(where)
    worker.run_ranks(folder, where)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replicas("one GPU", tmp_path_factory)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replicas("two GPUs", tmp_path_factory)


def as_one_process(folder: Path, scenario: str, name: str) -> None:
    """The gradients that each rank left are those of one process on the whole batch."""
    with worker.placed("one GPU", 0):
        expected = worker.on_one(scenario, name)
    for rank in range(worker.RANKS):
        found = torch.load(folder / f"{scenario}-{name}-{rank}.pt", map_location="cpu")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            theirs = None if value is None else value.cpu()
            torch.testing.assert_close(found[key], theirs, rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", worker.OVER_GLOO)
def test_two_processes_on_one_gpu_train_as_one(scenario: str, name: str, shared: Path) -> None:
    as_one_process(shared, scenario, name)


@pytest.mark.skipif(
    torch.cuda.device_count() < 2 or not torch.distributed.is_nccl_available(),
    reason="needs two GPUs and NCCL",
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", worker.SCENARIOS)
def test_two_gpus_train_as_one(scenario: str, name: str, apart: Path) -> None:
    as_one_process(apart, scenario, name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_replicas_of_one_process_train_as_one_module(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn: Any = getattr(fusedrnn, name)(I, 60, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.rnn(x)[0]
            return result

    model = Model()
    x = torch.randn(6, T, I)
    found = []
    for call in (model, nn.DataParallel(model, [0, 1])):
        model.zero_grad()
        y = call(x)
        y.square().sum().backward()
        found.append([y, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

"""A build without the CUDA half, given a GPU's tensors: they take torch.nn's own path, with one
warning. Without a GPU this is seen on fake tensors, which know a device but hold no data: the
operators that torch is asked for are those that torch.nn asks for, in its order. That the same
calls give torch.nn's numbers is tested on a CPU (tests/cuda/glue/torch_glue_checks.py)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import fusedrnn
from fusedrnn import _binary

pytestmark = [
    pytest.mark.skipif(_binary.build_info()["cuda"], reason="this build has its CUDA half"),
    pytest.mark.skipif(
        torch.version.cuda is None,
        reason="a torch without CUDA makes no tensors on a GPU, even fake",
    ),
]
LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")
# What only asks a tensor or allocates; ours asks in another order than torch.nn.
ASKS = ("prim.", "aten.zeros", "aten.new_zeros", "aten.empty", "aten.detach")


class Calls(TorchDispatchMode):
    """The operators that compute, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not str(func).startswith(ASKS):
            self.made.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _no_driver() -> Iterator[None]:
    """cuDNN would ask for a driver even for fake tensors."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


def outcome(module: nn.Module, *inputs: Any) -> list[Any]:
    """The operators that a call makes, and what it ends with: the outputs' shapes and devices, or
    the type of an exception, where torch's fake kernels themselves miss a driver or data."""
    with Calls() as seen:
        try:
            result = module(*inputs)
        except Exception as error:
            return [*seen.made, type(error)]
    output = result if isinstance(result, torch.Tensor) else result[0]
    return [*seen.made, tuple(output.shape), str(output.device)]


def both(name: str, *sizes: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    ours, theirs = (
        getattr(where, name)(*sizes, **options, device="cuda") for where in (fusedrnn, nn)
    )
    return ours, theirs


quiet = pytest.mark.filterwarnings("ignore:fusedrnn was built without:UserWarning")


@quiet
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_ask_torch_for_what_torch_nn_does(name: str, options: dict[str, Any]) -> None:
    with FakeTensorMode():
        ours, theirs = both(name, 3, 4, **options)
        x = torch.randn(5, 2, 3, device="cuda")
        made = outcome(ours, x)
        assert made == outcome(theirs, x)
        if name == "RNN":  # LSTM's and GRU's fused steps may need a driver
            assert len(made) > 10
            assert made[-1] == "cuda:0"


@quiet
def test_projections_states_and_packed_rows_do_too() -> None:
    with FakeTensorMode():
        ours, theirs = both("LSTM", 3, 4, proj_size=2)
        x = torch.randn(5, 2, 3, device="cuda")
        hx = (torch.randn(1, 2, 2, device="cuda"), torch.randn(1, 2, 4, device="cuda"))
        assert outcome(ours, x, hx) == outcome(theirs, x, hx)
        packed = PackedSequence(torch.randn(8, 3, device="cuda"), torch.tensor([2, 2, 2, 1, 1]))
        assert outcome(ours, packed)[-1] == outcome(theirs, packed)[-1]


@quiet
@pytest.mark.parametrize("name", CELLS)
def test_cells_ask_torch_for_what_torch_nn_does(name: str) -> None:
    with FakeTensorMode():
        ours, theirs = both(name, 3, 4)
        x, h = torch.randn(2, 3, device="cuda"), torch.randn(2, 4, device="cuda")
        state = (h, h) if name == "LSTMCell" else h
        assert outcome(ours, x, state) == outcome(theirs, x, state)


def test_one_warning_says_why_and_what_to_run() -> None:
    code = """
import torch, warnings
from torch._subclasses.fake_tensor import FakeTensorMode
torch.backends.cudnn.enabled = False
import fusedrnn
with FakeTensorMode(), warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(3):
        fusedrnn.LSTM(3, 4, device="cuda")(torch.randn(5, 2, 3, device="cuda"))
        fusedrnn.LSTMCell(3, 4, device="cuda")(torch.randn(2, 3, device="cuda"))
print([str(w.message) for w in told if "fusedrnn" in str(w.message)])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = ast.literal_eval(done.stdout)
    assert len(told) == 1
    assert str(_binary.build_info()["cuda_missing"]) in told[0]
    assert "FUSEDRNN_CUDA=1" in told[0]
    assert "torch.nn runs on the GPU" in told[0]


def test_explain_says_so() -> None:
    with FakeTensorMode():
        lstm = fusedrnn.LSTM(3, 4, device="cuda")
        plan = fusedrnn.explain(lstm, torch.randn(5, 2, 3, device="cuda"))
    assert plan.route == "torch"
    assert plan.layers == ()
    assert str(_binary.build_info()["cuda_missing"]) in str(plan)


def test_the_layer_operator_itself_refuses() -> None:
    with FakeTensorMode():
        weights = [*fusedrnn.LSTM(3, 4, device="cuda").parameters()]
        x = torch.randn(5, 2, 3, device="cuda")
        with pytest.raises(NotImplementedError, match=r"without its CUDA half .* on cuda:0"):
            torch.ops.fusedrnn.layer(x, None, None, None, weights, "LSTM", True, False)

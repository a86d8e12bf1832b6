"""The definition itself, held to torch.nn in float64, where both must agree to rounding."""

from __future__ import annotations

import ast
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusedrnn import reference
from fusedrnn._ops.cells import CELLS
from support.problems import MODES, Problem, grid, run

FLAGS = {
    "T": (1, 2, 7),
    "B": (1, 4),
    "H": (1, 5),
    "L": (1, 3),
    "P": (0, 2),
    "form": ("batched", "batch_first", "unbatched", "sorted", "unsorted"),
    "bidirectional": (False, True),
    "bias": (True, False),
    "dropout": (0.0, 0.4),
    "hx": ("none", "grad"),
    "use": ("all", "output", "h_n", "c_n"),
    "dtype": (torch.float64,),
}


@pytest.mark.parametrize("problem", [p for m in MODES for p in grid(m, FLAGS)], ids=str)
def test_stack_equals_torch_outputs_and_gradients(problem: Problem) -> None:
    theirs, exact = run(problem, "torch"), run(problem, "exact")
    assert theirs.keys() == exact.keys()
    for name, value in exact.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("bias", [True, False])
def test_cells_equal_torch_cells(bias: bool) -> None:
    x, h, c = (torch.randn(3, n, dtype=torch.float64) for n in (4, 5, 5))

    def weights(module: nn.Module) -> Any:
        return module.parameters()

    lstm = nn.LSTMCell(4, 5, bias, dtype=torch.float64)
    torch.testing.assert_close(reference.lstm_cell(x, h, c, *weights(lstm)), lstm(x, (h, c)))
    gru = nn.GRUCell(4, 5, bias, dtype=torch.float64)
    torch.testing.assert_close(reference.gru_cell(x, h, *weights(gru)), gru(x, h))
    for nonlinearity in ("tanh", "relu"):
        rnn = nn.RNNCell(4, 5, bias, nonlinearity, dtype=torch.float64)
        cell = partial(reference.rnn_cell, nonlinearity=nonlinearity)
        ours = cell(x, h, *weights(rnn))
        torch.testing.assert_close(ours, rnn(x, h))


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives_are_right(mode: str) -> None:
    G = {"LSTM": 4, "GRU": 3}.get(mode, 1)
    shapes = [(3, 2, 2), (1, 2, 2), (1, 2, 2), (2 * G, 2), (2 * G, 2), (2 * G,), (2 * G,)]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def layer(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *w: torch.Tensor) -> torch.Tensor:
        y, h_n, c_n, _ = reference.layer(x, None, h, c, w, mode, True)
        return y.sum() + (h_n * h_n).sum() + (c_n * c_n).sum()

    if mode == "RNN_RELU":  # keep away from the kink
        tensors = [t.detach().abs().requires_grad_() for t in tensors]
    assert torch.autograd.gradgradcheck(layer, tensors)


def test_reference_runs_in_every_floating_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        weights = [torch.randn(8, 3, dtype=dtype), torch.randn(8, 2, dtype=dtype)]
        outputs = reference.layer(
            torch.randn(2, 1, 3, dtype=dtype), None, None, None, weights, "LSTM", False
        )
        assert {t.dtype for t in outputs} == {dtype}


def test_the_definition_has_the_cells_of_the_table() -> None:
    defined = {mode: (cell.gates, cell.has_c) for mode, cell in reference._CELLS.items()}
    assert defined == {mode: (cell.gates, cell.has_c) for mode, cell in CELLS.items()}


def test_reference_imports_only_torch() -> None:
    files = Path(reference.__file__).parent.glob("reference*.py")
    roots = {
        name.split(".")[0]
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "torch" in roots
    assert roots <= {"torch", "reference_cells"} | sys.stdlib_module_names

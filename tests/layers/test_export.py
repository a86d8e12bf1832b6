"""Models leave Python by every way torch has, and what arrives is run: exported programs with ours
inside, and through to_torch what knows torch.nn's operators only: dynamic quantization,
TorchScript, and programs that run without fusedrnn. ONNX without to_torch: test_onnx.py."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import fusedrnn
from support.oracle import close, ours_in, states

NAMES = ("RNN", "LSTM", "GRU")
T, B = Dim("T", min=2, max=64), Dim("B", min=2, max=64)


class Model(nn.Module):
    """Layers of every kind within a model: code before, between and after, another layout."""

    def __init__(self, namespace: Any = fusedrnn) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.lstm = namespace.LSTM(4, 5, 2, bidirectional=True)
        self.gru = namespace.GRU(10, 6, batch_first=True)
        self.rnn = namespace.RNN(6, 7, nonlinearity="relu")
        self.cell = namespace.GRUCell(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.lstm(self.first(x).tanh())
        y = self.gru(y.transpose(0, 1))[0].transpose(0, 1)
        y = self.rnn(y)[1][0]
        result: Tensor = self.cell(y, h[-1]).softmax(-1)
        return result


LAYERS = ["lstm", "gru", "rnn", "cell"]


def model() -> Model:
    return Model().eval().requires_grad_(False)


def exported(module: nn.Module, x: Tensor, *sizes: Any, strict: bool = False) -> Any:
    """An exported program whose leading sizes are dynamic, or not where None is given."""
    dynamic = {i: size for i, size in enumerate(sizes) if size is not None}
    with warnings.catch_warnings():  # of torch's about torch.nn's list of weights
        warnings.simplefilter("ignore", UserWarning)
        return torch.export.export(module, (x,), dynamic_shapes=(dynamic,), strict=strict)


def operators(program: Any) -> set[str]:
    nodes = program.graph.nodes
    return {str(node.target) for node in nodes if node.op == "call_function"}


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_of_ours_exports_with_dynamic_T_and_B_and_its_program_runs_any(
    strict: bool,
) -> None:
    ours = model()
    program = exported(ours, torch.randn(4, 3, 3), T, B, strict=strict)
    assert "fusedrnn.stack.default" in operators(program)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    for shape in ((4, 3, 3), (2, 2, 3), (31, 7, 3)):
        x = torch.randn(shape)
        close(loaded(x), ours(x))


@pytest.mark.parametrize("name", NAMES)
def test_states_given_to_an_exported_layer_have_a_dynamic_batch(name: str) -> None:
    layer = getattr(fusedrnn, name)(3, 5, 2).eval().requires_grad_(False)
    x, hx = torch.randn(4, 3, 3), states(name, 2, 3, 5)
    batch: Any = ({1: B}, {1: B}) if name == "LSTM" else {1: B}
    program = torch.export.export(layer, (x, hx), dynamic_shapes=({0: T, 1: B}, batch))
    x, hx = torch.randn(9, 7, 3), states(name, 2, 7, 5)
    close(program.module()(x, hx), layer(x, hx))


def test_an_exported_program_of_ours_can_be_trained() -> None:
    ours = fusedrnn.GRU(3, 5, 2)
    program = exported(nn.Sequential(ours), torch.randn(4, 3, 3), T, B).module()
    x = torch.randn(6, 2, 3)
    for module in (ours, program):
        module.zero_grad()
        module(x)[0].square().sum().backward()
    gradients = [[p.grad for p in module.parameters()] for module in (ours, program)]
    assert all(g is not None for g in gradients[1])
    close(gradients[1], gradients[0])


WITHOUT = """
import sys
sys.modules["fusedrnn"] = None  # an import of it raises
import torch
program, x, expected = sys.argv[1], *torch.load(sys.argv[2])
torch.testing.assert_close(LOAD(program)(x), expected, rtol=1e-5, atol=1e-6)
"""


def run_without_fusedrnn(load: str, program: Path, x: Tensor, expected: Tensor) -> Any:
    """Run a saved program in a process that cannot import fusedrnn, and compare there."""
    data = program.with_suffix(".data")
    torch.save((x, expected), data)
    command = [sys.executable, "-c", WITHOUT.replace("LOAD", load), str(program), str(data)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_program_exported_after_to_torch_runs_where_fusedrnn_is_not_installed(
    tmp_path: Path,
) -> None:
    ours, x = model(), torch.randn(4, 7, 3)
    expected = ours(x)
    load = "(lambda path: torch.export.load(path).module())"
    torch.export.save(exported(ours, torch.randn(4, 3, 3), T, B), tmp_path / "ours.pt2")
    result = run_without_fusedrnn(load, tmp_path / "ours.pt2", x, expected)
    assert result.returncode, "fusedrnn's operator was there all the same"

    assert ours_in(ours) == LAYERS
    fusedrnn.to_torch(ours)
    # T is not dynamic here: torch unrolls its own layers to learn the shapes.
    program = exported(ours, torch.randn(4, 3, 3), None, B)
    assert not {name for name in operators(program) if "fusedrnn" in name}
    assert {"aten.lstm.input", "aten.gru.input", "aten.rnn_relu.input"} <= operators(program)
    torch.export.save(program, tmp_path / "torchs.pt2")
    result = run_without_fusedrnn(load, tmp_path / "torchs.pt2", x, expected)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "TorchScript"])
def test_onnx_made_after_to_torch_gives_our_outputs_in_onnxruntime(
    tmp_path: Path, dynamo: bool
) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"needs {package}, of the extra test-export")
    import onnxruntime

    ours, path = model(), tmp_path / "model.onnx"
    examples = [torch.randn(4, batch, 3) for batch in (3, 7, 1)]
    options: dict[str, Any] = {"dynamo": True, "dynamic_shapes": ({1: B},), "verbose": False}
    if not dynamo:  # this one keeps T dynamic, too
        examples += [torch.randn(9, 2, 3)]
        options = {"dynamo": False, "dynamic_axes": {"x": {0: "T", 1: "B"}}}
    expected = [ours(x) for x in examples]
    fusedrnn.to_torch(ours)
    with warnings.catch_warnings():  # of deprecations, and of a batch that might be fixed
        warnings.simplefilter("ignore")
        torch.onnx.export(ours, (examples[0],), path, input_names=["x"], **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x, want in zip(examples, expected, strict=True):
        (got,) = session.run(None, {"x": x.numpy()})
        close(torch.from_numpy(got), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize:UserWarning")
def test_quantize_dynamic_quantizes_after_to_torch_and_nothing_of_ours_before() -> None:
    def quantized(module: nn.Module) -> Any:
        kinds = {nn.LSTM, nn.GRU, nn.GRUCell}
        return torch.ao.quantization.quantize_dynamic(module, kinds, dtype=torch.qint8)

    if torch.backends.quantized.supported_engines == ["none"]:
        pytest.skip("this torch has no quantized kernels")
    ours, x = model(), torch.randn(4, 3, 3)
    expected = ours(x)
    theirs = Model(nn).eval().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    assert type(quantized(ours).lstm) is fusedrnn.LSTM
    fusedrnn.to_torch(ours)
    small = quantized(ours)
    for name in ("lstm", "gru", "cell"):
        assert type(getattr(small, name)).__module__.startswith("torch.ao.nn.quantized.dynamic")
    assert torch.equal(small(x), quantized(theirs)(x))
    torch.testing.assert_close(small(x), expected, rtol=0, atol=0.05)
    assert not torch.equal(small(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_made_after_to_torch_runs_where_fusedrnn_is_not_installed(
    tmp_path: Path, how: str
) -> None:
    ours, x = model(), torch.randn(9, 2, 3)
    expected = ours(x)
    fusedrnn.to_torch(ours)
    compiled: Any = torch.jit.script(ours) if how == "script" else torch.jit.trace(ours, x)
    close(compiled(x), expected)
    torch.jit.save(compiled, tmp_path / "model.pt")
    result = run_without_fusedrnn("torch.jit.load", tmp_path / "model.pt", x, expected)
    assert result.returncode == 0, result.stderr

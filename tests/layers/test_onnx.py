"""torch.onnx.export makes of our layers ONNX's own LSTM, GRU and RNN nodes, by either of its
exporters, and onnxruntime computes with them what the layers compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fusedrnn
from support.oracle import close, states, tensors_of

onnx, onnxruntime, _ = (
    pytest.importorskip(package, reason=f"needs {package}, of the extra test-export")
    for package in ("onnx", "onnxruntime", "onnxscript")
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:.isinstance.treespec:FutureWarning",
    "ignore:# The axis name",  # two inputs share it
    "ignore:Exporting a model while it is in training mode",
    "ignore:It is recommended that constant folding",  # in training mode, too
)
both_exporters = pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "TorchScript"])

RECURRENT = {"LSTM", "GRU", "RNN"}
KINDS = [("LSTM", {}), ("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"})]
every_kind = pytest.mark.parametrize(
    ("name", "options"), KINDS, ids=["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
)
DIMS = {"T": Dim("T", min=2, max=64), "B": Dim("B", min=2, max=64)}
Dynamic = Sequence[dict[int, str]]  # of each input, which of its sizes have which name


class Exported:
    """A model as ONNX: which of ONNX's recurrent nodes it has, and onnxruntime to run it."""

    def __init__(
        self, model: Any, inputs: Sequence[Tensor], path: Path, dynamo: bool, dynamic: Dynamic = ()
    ) -> None:
        self.names = [f"input{i}" for i in range(len(inputs))]
        options: dict[str, Any] = {"input_names": self.names, "dynamo": dynamo}
        if dynamo:
            options["verbose"] = False
            if dynamic:
                options["dynamic_shapes"] = [
                    {i: DIMS[name] for i, name in sizes.items()} for sizes in dynamic
                ]
        else:
            options["dynamic_axes"] = dict(zip(self.names, dynamic, strict=False))
        file = path / "model.onnx"
        torch.onnx.export(model, tuple(inputs), file, **options)
        proto = onnx.load(file)
        self.nodes = [node.op_type for node in proto.graph.node]
        assert {node.domain for node in proto.graph.node} == {""}
        self.recurrent = [kind for kind in self.nodes if kind in RECURRENT]
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = {name: x.numpy() for name, x in zip(self.names, inputs, strict=True)}
        return tuple(torch.from_numpy(y) for y in self.session.run(None, given))


class Called(nn.Module):
    """A layer whose states are inputs of their own: ONNX knows no pairs."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> Any:
        return self.layer(x, h if c is None else (h, c))


def check(
    layer: Any,
    tmp_path: Path,
    dynamo: bool,
    arguments: Callable[[int, int], Sequence[Tensor]],
    dynamic: Dynamic,
) -> Exported:
    """Export a layer with ``arguments`` of T and B, and compare at others, too."""
    model = Called(layer).eval()
    exported = Exported(model, arguments(4, 3), tmp_path, dynamo, dynamic)
    for T, B in ((4, 3), (9, 2), (1, 1)):
        inputs = arguments(T, B)
        close(exported(*inputs), tensors_of(model(*inputs)))
    return exported


@both_exporters
@every_kind
@pytest.mark.parametrize(
    ("L", "bidirectional", "bias", "given"),
    [
        (1, False, True, False),
        (2, True, True, True),
        (1, True, False, True),
        (2, False, False, False),
        (2, True, True, False),
    ],
)
def test_a_layer_is_one_node_and_any_T_and_B_can_be_run(
    tmp_path: Path,
    name: str,
    options: dict[str, str],
    dynamo: bool,
    L: int,
    bidirectional: bool,
    bias: bool,
    given: bool,
) -> None:
    layer = getattr(fusedrnn, name)(3, 5, L, bias=bias, bidirectional=bidirectional, **options)

    def arguments(T: int, B: int) -> list[Tensor]:
        hx = states(name, L * (1 + bidirectional), B, 5) if given else ()
        return [torch.randn(T, B, 3), *tensors_of(hx if isinstance(hx, tuple) else (hx,))]

    sizes = [{0: "T", 1: "B"}, {1: "B"}, {1: "B"}]
    exported = check(layer, tmp_path, dynamo, arguments, sizes[: len(arguments(1, 1))])
    assert exported.recurrent == [name] * L


@both_exporters
@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_input_may_be_batch_first_or_unbatched(tmp_path: Path, name: str, dynamo: bool) -> None:
    layer = getattr(fusedrnn, name)(3, 5, 2, batch_first=True, bidirectional=True)
    sizes = [{0: "B", 1: "T"}]
    check(layer, tmp_path, dynamo, lambda T, B: [torch.randn(B, T, 3)], sizes)
    check(layer, tmp_path, dynamo, lambda T, _: [torch.randn(T, 3)], [{0: "T"}])


@both_exporters
def test_a_float16_layer_computes_in_float32_as_ours_does(tmp_path: Path, dynamo: bool) -> None:
    layer, x = fusedrnn.LSTM(3, 5).half().eval(), torch.randn(4, 3, 3).half()
    assert torch.equal(Exported(layer, [x], tmp_path, dynamo)(x)[0], layer(x)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_projected_lstm_is_a_node_too(tmp_path: Path, bidirectional: bool, given: bool) -> None:
    layer = fusedrnn.LSTM(3, 5, 2, proj_size=2, bidirectional=bidirectional)
    rows = 2 * (1 + bidirectional)

    def arguments(T: int, B: int) -> list[Tensor]:
        hx = [torch.randn(rows, B, 2), torch.randn(rows, B, 5)] if given else []
        return [torch.randn(T, B, 3), *hx]

    sizes = [{0: "T", 1: "B"}, {1: "B"}, {1: "B"}][: 3 if given else 1]
    assert check(layer, tmp_path, True, arguments, sizes).recurrent == ["LSTM"] * 2


class Model(nn.Module):
    """A small model from words to classes, with code around the layers and cells in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 3)
        self.lstm = fusedrnn.LSTM(3, 5, 2, dropout=0.5, bidirectional=True, batch_first=True)
        self.gru = fusedrnn.GRU(10, 6)
        self.lstm_cell = fusedrnn.LSTMCell(6, 4)
        self.gru_cell = fusedrnn.GRUCell(4, 4, bias=False)
        self.rnn_cell = fusedrnn.RNNCell(4, 4, nonlinearity="relu")
        self.classes = nn.Linear(4, 2)

    def forward(self, words: Tensor) -> Tensor:
        y, _ = self.lstm(self.words(words))
        _, h = self.gru(y.transpose(0, 1))
        c, top = None, None
        for _ in range(2):
            c = self.lstm_cell(h[0], c)
            top = self.rnn_cell(self.gru_cell(c[0], top))
        result: Tensor = self.classes(top).softmax(-1)
        return result


@both_exporters
def test_a_model_with_cells_in_a_loop_is_exported_whole(tmp_path: Path, dynamo: bool) -> None:
    model, words = Model().eval(), torch.randint(11, (3, 4))
    exported = Exported(model, [words], tmp_path, dynamo, [{0: "B", 1: "T"}])
    assert exported.recurrent == ["LSTM", "LSTM", "GRU"] + ["LSTM", "GRU", "RNN"] * 2
    assert "Dropout" not in exported.nodes
    for x in (words, torch.randint(11, (2, 9))):
        close(exported(x), (model(x),))


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_of_torch_export_becomes_onnx(tmp_path: Path, decomposed: bool) -> None:
    model, x = fusedrnn.GRU(3, 5, 2).eval(), torch.randn(4, 3, 3)
    program = torch.export.export(model, (x,))
    program = program.run_decompositions() if decomposed else program
    exported = Exported(program, [x], tmp_path, True)
    assert exported.recurrent == ["GRU"] * 2
    close(exported(x), model(x))
    program = torch.export.export(Unpacked(model), tuple(ROWS[:2]))
    program = program.run_decompositions() if decomposed else program
    with pytest.raises(RuntimeError, match=r"fusedrnn: only .*dynamo=False\) can"):
        Exported(program, ROWS[:2], tmp_path, True)


def test_dropout_in_training_is_exported_by_the_new_exporter_and_refused_by_the_old(
    tmp_path: Path,
) -> None:
    layer, x = fusedrnn.LSTM(3, 5, 2, dropout=0.5).train(), torch.randn(4, 3, 3)
    assert "Dropout" in Exported(layer, [x], tmp_path, True).nodes
    options: Any = {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE}
    with pytest.raises(RuntimeError, match=r"^fusedrnn: .*call model\.eval\(\) first$"):
        torch.onnx.export(layer, (x,), tmp_path / "model.onnx", **options)


class Packing(nn.Module):
    """A layer that runs on packed rows; the model's input is padded."""

    def __init__(self, layer: Any, enforce_sorted: bool = True) -> None:
        super().__init__()
        self.layer, self.enforce_sorted = layer, enforce_sorted

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        rows = pack_padded_sequence(x, lengths, enforce_sorted=self.enforce_sorted)
        y, hx = self.layer(rows)
        return pad_packed_sequence(y)[0], hx


@every_kind
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_the_old_exporter_takes_packed_sequences(
    tmp_path: Path, name: str, options: dict[str, str], enforce_sorted: bool
) -> None:
    layer = getattr(fusedrnn, name)(3, 5, 2, bidirectional=True, **options)
    model = Packing(layer, enforce_sorted).eval()
    lengths = [torch.tensor([4, 2, 1]), torch.tensor([5, 5])]
    lengths += [] if enforce_sorted else [torch.tensor([1, 6, 3, 6])]
    sizes = [{0: "T", 1: "B"}, {0: "B"}]
    exported = Exported(model, [torch.randn(4, 3, 3), lengths[0]], tmp_path, False, sizes)
    assert exported.recurrent == [name] * 2
    for n in lengths:
        x = torch.randn(int(n.max()), len(n), 3)
        close(exported(x, n), tensors_of(model(x, n)))


class Unpacked(nn.Module):
    """A layer on packed rows that were packed outside of the model."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, data: Tensor, batch_sizes: Tensor) -> Any:
        return self.layer(PackedSequence(data, batch_sizes))[0].data


X, LENGTHS = torch.ones(4, 3, 3), torch.tensor([4, 2, 1])
ROWS = pack_padded_sequence(X, LENGTHS)


@pytest.mark.parametrize(
    ("model", "inputs", "dynamo", "remedy"),
    [
        (Packing(fusedrnn.GRU(3, 5)), (X, LENGTHS), True, r"only .*dynamo=False\) can"),
        (Unpacked(fusedrnn.GRU(3, 5)), ROWS[:2], True, r"only .*dynamo=False\) can"),
        (Unpacked(fusedrnn.GRU(3, 5)), ROWS[:2], False, "call pack_padded_sequence within"),
        (fusedrnn.LSTM(3, 5, proj_size=2), (X,), False, r"only .*dynamo=True\) can"),
    ],
    ids=["packed", "packed outside", "packed outside, old", "projected, old"],
)
def test_what_cannot_be_exported_is_refused_with_the_remedy(
    tmp_path: Path, model: Any, inputs: Any, dynamo: bool, remedy: str
) -> None:
    with pytest.raises(RuntimeError, match=f"fusedrnn: .*{remedy}"):
        Exported(model.eval(), inputs, tmp_path, dynamo)


class Ending(nn.Module):
    """A layer whose lengths are an input, and what is refused beside them."""

    def __init__(self, layer: Any, **keywords: Any) -> None:
        super().__init__()
        self.layer, self.keywords = layer, keywords

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.layer(x, lengths=lengths, **self.keywords)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_lengths_become_sequence_lens(tmp_path: Path, name: str) -> None:
    model = Ending(getattr(fusedrnn, name)(3, 5, 2, bidirectional=True)).eval()
    x, lengths = torch.randn(6, 4, 3), torch.tensor([6, 2, 4, 1])
    exported = Exported(model, (x, lengths), tmp_path, dynamo=True)
    assert exported.recurrent == [name] * 2
    for other in (lengths, torch.tensor([1, 6, 6, 3])):
        close(exported(x, other), tensors_of(model(x, other)))


@pytest.mark.parametrize("dynamo", [True, False])
def test_states_of_every_step_are_refused(tmp_path: Path, dynamo: bool) -> None:
    model = Ending(fusedrnn.LSTM(3, 5), return_states=True).eval()
    with pytest.raises(RuntimeError, match=r"fusedrnn: .*(return_states|exports no lengths)"):
        Exported(model, (torch.randn(6, 4, 3), torch.tensor([6, 2, 4, 1])), tmp_path, dynamo)


def test_what_is_not_for_onnx_keeps_the_fused_operator() -> None:
    layer, x = fusedrnn.LSTM(3, 5), torch.randn(4, 3, 3)
    program = torch.export.export(layer, (x,), dynamic_shapes=[{0: DIMS["T"], 1: DIMS["B"]}])
    found: list[str] = []

    def note(graph: Any, _: Any) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    note(program.run_decompositions().graph_module, None)
    assert "fusedrnn.layer.default" in found
    found.clear()
    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    compiled: Any = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    compiled(x)[0].sum().backward()
    assert {"fusedrnn.layer.default", "fusedrnn.layer_backward.default"} <= set(found)

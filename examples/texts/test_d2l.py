"""d2l's own code, from its package: with our layer handed in it trains, scores and predicts as with
torch.nn's, to rounding."""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedrnn
from examples import data
from examples.data import fetch
from examples.driver.layers import IMPLEMENTATIONS
from examples.from_scratch.written_out import WrittenOut, freeze, layer_state
from examples.texts import __main__ as command
from examples.texts import d2l as texts

pytest.importorskip("d2l", reason="needs d2l, of the extra test-third-party")

NAME = Path(fetch.TIME_MACHINE.path)
# Found here, because the tests themselves find no data that they did not put somewhere.
FOUND = [
    directory / name
    for _, directory in fetch.places(None)
    if directory is not None
    for name in (NAME, NAME.name)
    if (directory / name).is_file()
]
CPU = torch.device("cpu")
HIDDEN, EPOCHS = 24, 20


def publish(d2l: Any, text: str, directory: Path) -> None:
    """Puts `text` in place of The Time Machine, where d2l looks, with the checksum it has."""
    (directory / "timemachine.txt").write_text(text)
    url, _ = d2l.DATA_HUB["time_machine"]
    d2l.DATA_HUB["time_machine"] = (url, hashlib.sha1(text.encode()).hexdigest())


@pytest.fixture
def d2l(tmp_path: Path) -> Any:
    """The package, with The Time Machine if it is on this machine, else with random characters."""
    if FOUND:
        return texts.load(FOUND[0].parent)
    found = texts.load(tmp_path)
    synthetic = data.synthetic_text()
    publish(found, synthetic.decode(synthetic.tokens.tolist()), tmp_path)
    return found


def loaded(d2l: Any, shuffled: bool = False) -> tuple[Any, Any]:
    random.seed(0)
    pair: tuple[Any, Any] = d2l.load_data_time_machine(32, 35, use_random_iter=shuffled)
    return pair


def trained(d2l: Any, model: Any, capsys: Any, shuffled: bool = False) -> tuple[Any, ...]:
    """train_ch8: every perplexity that it draws, what it prints but the speed, all weights."""
    batches, vocab = loaded(d2l, shuffled)
    d2l.train_ch8(model, batches, vocab, 1, EPOCHS, CPU, shuffled)
    *early, speed, first, second = capsys.readouterr().out.splitlines()
    assert speed.endswith("tokens/sec on cpu")
    curve = d2l.display.curve()
    d2l.plt.close("all")
    assert len(curve) == len(early) == EPOCHS // 10
    weights = [*model.parameters()] if isinstance(model, nn.Module) else model.params
    return curve, (*early, speed.partition(",")[0], first, second), weights


def alike(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    assert ours[1] == theirs[1]
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-3, atol=1e-4)


def both(d2l: Any, cell: str) -> list[Any]:
    """RNNModel of ours and of torch.nn's layer, from the same seed."""
    _, vocab = loaded(d2l)
    models = []
    for impl in IMPLEMENTATIONS:
        torch.manual_seed(0)
        models.append(texts.concise(d2l, cell, impl, len(vocab), HIDDEN))
    assert [type(m.rnn).__module__.split(".")[0] for m in models] == [*IMPLEMENTATIONS]
    return models


@pytest.mark.parametrize("shuffled", [False, True], ids=["sequential", "random"])
def test_rnn_model_trains_and_predicts_alike(
    d2l: Any, cell: str, shuffled: bool, capsys: Any
) -> None:
    ours, theirs = (trained(d2l, model, capsys, shuffled) for model in both(d2l, cell))
    alike(ours, theirs)
    assert ours[0][-1] < ours[0][0]


def test_epochs_and_predictions_called_alone_are_alike(d2l: Any, cell: str) -> None:
    batches, vocab = loaded(d2l)
    found = []
    for model in both(d2l, cell):
        random.seed(0)
        updater = torch.optim.SGD(model.parameters(), 1)
        about = (nn.CrossEntropyLoss(), updater, CPU, False)
        losses = [d2l.train_epoch_ch8(model, batches, *about)[0] for _ in range(3)]
        found.append((losses, d2l.predict_ch8("time traveller", 50, model, vocab, CPU)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) == len("time traveller") + 50


def test_a_scratch_model_trains_as_a_layer_of_its_weights(d2l: Any, cell: str, capsys: Any) -> None:
    _, vocab = loaded(d2l)
    written = WrittenOut(cell, len(vocab), HIDDEN)
    state = {name: tensor.clone() for name, tensor in layer_state(written).items()}
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(texts, "WrittenOut", lambda *_: written)
        model = texts.scratch(d2l, cell, len(vocab), HIDDEN)
    assert isinstance(model, d2l.RNNModelScratch)
    written_results = trained(d2l, model, capsys)
    end = [*layer_state(written).values()]
    for layered in both(d2l, cell):
        layered.load_state_dict(state)
        freeze(layered)
        results = trained(d2l, layered, capsys)
        alike((*results[:2], [*layered.state_dict().values()]), (*written_results[:2], end))


def of_layer(d2l: Any, model: Any) -> Any:
    """d2l's RNNModelScratch, its functions those of an RNNModel's layer; trained by d2l's sgd."""
    names = [name for name, _ in model.named_parameters()]
    cell: Any = model.rnn

    def forward(
        inputs: Tensor, states: tuple[Tensor, ...], parameters: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        of = dict(zip(names, parameters, strict=True))
        weights = {k.removeprefix("rnn."): v for k, v in of.items() if k.startswith("rnn.")}
        state = states if len(states) == 2 else states[0]
        output, state = torch.func.functional_call(cell, weights, (inputs, state))
        logits = output.flatten(0, 1) @ of["linear.weight"].t() + of["linear.bias"]
        return logits, state if isinstance(state, tuple) else (state,)

    def parameters(*_: Any) -> list[nn.Parameter]:
        return [*model.parameters()]

    def states(batch: int, hidden: int, device: torch.device) -> tuple[Tensor, ...]:
        zeros = torch.zeros(1, batch, hidden, device=device)
        return (zeros, zeros) if isinstance(cell, nn.LSTM) else (zeros,)

    sizes = (model.vocab_size, cell.hidden_size, CPU)
    return d2l.RNNModelScratch(*sizes, parameters, states, forward)


def test_a_scratch_model_takes_the_layers_as_functions(d2l: Any, cell: str, capsys: Any) -> None:
    found = []
    for model in both(d2l, cell):
        functions = of_layer(d2l, model)
        assert isinstance(functions, d2l.RNNModelScratch)
        found.append(trained(d2l, functions, capsys))
    alike(*found)
    alike(trained(d2l, both(d2l, cell)[0], capsys), found[0])  # and as RNNModel


class Decoder(nn.Module):
    """A decoder as d2l's EncoderDecoder and train_seq2seq ask for it: logits [B, T, V].

    The package has none. The encoder's last state is the first one, and its last layer's stands
    beside every input.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.rnn = nn.GRU(embedding + hidden, hidden, layers)  # under a patch fusedrnn's
        self.linear = nn.Linear(hidden, vocabulary)

    def init_state(self, outputs: Any, *_: Any) -> tuple[Tensor, Tensor]:
        return outputs[1], outputs[1][-1]

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        h, context = state
        embedded = self.embedding(x).transpose(0, 1)
        beside = context.expand(len(embedded), -1, -1)
        output, h = self.rnn(torch.cat([embedded, beside], 2), h)
        return self.linear(output).transpose(0, 1), (h, context)


DIGITS = ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"]


def translated(d2l: Any, patched: bool, capsys: Any) -> tuple[Any, ...]:
    """Digits into French by Seq2SeqEncoder and train_seq2seq: the loss, weights, a translation."""
    rng = random.Random(0)
    source = [[*map(str, rng.choices(range(10), k=rng.randint(1, 4)))] for _ in range(200)]
    target = [[DIGITS[int(digit)] for digit in line] for line in source]
    reserved = ["<pad>", "<bos>", "<eos>"]
    vocabs = [d2l.Vocab(lines, reserved_tokens=reserved) for lines in (source, target)]
    arrays = [
        array
        for lines, vocab in zip((source, target), vocabs, strict=True)
        for array in d2l.build_array_nmt(lines, vocab, 5)
    ]
    torch.manual_seed(0)
    encoder = d2l.Seq2SeqEncoder(len(vocabs[0]), 16, 24, 2)
    decoder = Decoder(len(vocabs[1]), 16, 24, 2)
    model = d2l.EncoderDecoder(encoder, decoder)
    for rnn in (encoder.rnn, decoder.rnn):
        assert type(rnn).__module__.startswith("fusedrnn") is patched
    d2l.train_seq2seq(model, d2l.load_array(arrays, 40), 0.01, 20, vocabs[1], CPU)
    d2l.plt.close("all")
    said, _, speed = capsys.readouterr().out.partition(",")
    assert "tokens/sec" in speed
    words, _ = d2l.predict_seq2seq(model, "3 1 4", *vocabs, 5, CPU)
    return d2l.display.curve(), (said, words), [*model.parameters()]


def test_seq2seq_trains_and_translates_alike_under_a_patch(d2l: Any, capsys: Any) -> None:
    theirs = translated(d2l, False, capsys)
    with fusedrnn.patch():
        ours = translated(d2l, True, capsys)
    alike(ours, theirs)
    assert ours[1][1] == "trois un quatre"


def test_train_seq2seq_initializes_by_type_and_so_needs_the_patch(d2l: Any, capsys: Any) -> None:
    weights = []
    for patched in (True, False):
        torch.manual_seed(0)
        model = d2l.Seq2SeqEncoder(9, 4, 5, 1)
        fusedrnn.convert(model)
        before = model.rnn.weight_ih_l0.clone()
        with pytest.MonkeyPatch.context() as patching:
            if patched:
                patching.setattr(nn, "GRU", fusedrnn.GRU)
            array = torch.ones(2, 3, dtype=torch.int64)
            net = d2l.EncoderDecoder(model, nn.Identity())
            with pytest.raises(AttributeError, match="init_state"):  # after the initializing
                d2l.train_seq2seq(net, [[array, array, array, array]], 0.0, 1, {"<bos>": 1}, CPU)
        weights.append((before, model.rnn.weight_ih_l0))
    d2l.plt.close("all")
    assert not torch.equal(*weights[0])
    assert torch.equal(*weights[1])


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_an_empty_torchvision_stands_in_where_none_can_be_imported(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: str) -> None:
        raise error("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with monkeypatch.context() as patching:
        patching.setattr(importlib, "import_module", fails)
        with texts._torchvision():
            assert [*vars(sys.modules["torchvision"])][-1] == "transforms"
        assert "torchvision" not in sys.modules

    own = ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", own)
    with texts._torchvision():
        assert sys.modules["torchvision"] is own
    assert sys.modules["torchvision"] is own


def test_the_command_trains_all_three_kinds_and_compares(
    d2l: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "load", lambda _: d2l)
    monkeypatch.setattr(fetch, "locate", lambda *_: Path("timemachine.txt"))
    options = ["--cell", "rnn", "--hidden", "12", "--epochs", "10", "--impl", *texts.KINDS]
    assert command.run(["d2l", *options]) == 0
    out = capsys.readouterr().out
    table = out.rpartition("\n\n")[2].splitlines()
    assert [line.split()[0] for line in table[2:5]] == ["RNNModelScratch", "RNNModel", "RNNModel"]
    assert table[5:] == ["RNNModel's texts are the same at the end."]
    figures = [float(line.split()[-4]) for line in table[2:5]]
    assert figures[1] == pytest.approx(figures[2], rel=1e-3)
    assert out.count("before: traveller") == 3


def test_without_the_package_the_command_says_what_to_install(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "locate", lambda *_: Path("timemachine.txt"))

    def missing(_: str) -> None:
        raise ImportError("No module named 'd2l'")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert command.run(["d2l"]) == 1
    assert capsys.readouterr().err.endswith("pip install d2l==0.16.5\n")
    with pytest.raises(SystemExit):
        command.run(["d2l", "--epochs", "12"])
    assert "multiple of 10" in capsys.readouterr().err

"""patch puts fusedrnn's classes under torch.nn's names, for code that builds its own layers, and
takes them away again, whatever happens in between."""

from __future__ import annotations

import importlib
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn as torch_nn

import fusedrnn
from support.oracle import close

NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
nn: Any = torch_nn  # to mypy its names are torch's classes, always
PLACES = (nn, nn.modules, nn.modules.rnn)
TORCHS = {name: getattr(nn, name) for name in NAMES}


def in_force() -> bool:
    """Whether torch's names are ours; all of them or none."""
    named = {(p.__name__, n): getattr(p, n) for p in PLACES for n in NAMES}
    for namespace in (fusedrnn, TORCHS):
        of = namespace.get if isinstance(namespace, dict) else namespace.__dict__.get
        if all(value is of(name) for (_, name), value in named.items()):
            return namespace is fusedrnn
    raise AssertionError(f"some names are replaced: {named}")


@pytest.fixture(autouse=True)
def _nothing_stays_patched() -> Iterator[None]:
    assert not in_force()
    yield
    assert not in_force()


def test_a_block_gives_ours_under_every_name_and_then_torchs() -> None:
    with fusedrnn.patch():
        assert in_force()
        from torch.nn import LSTM
        from torch.nn.modules.rnn import GRUCell

        imported: list[Any] = [LSTM, GRUCell]
        for name in NAMES:
            module = getattr(torch.nn, name)(3, 5)
            assert type(module) is getattr(fusedrnn, name)
            assert isinstance(module, getattr(torch.nn, name))
            assert isinstance(module, nn.Module)
    assert imported == [fusedrnn.LSTM, fusedrnn.GRUCell]
    assert not in_force()


def test_as_a_function_it_holds_until_undone_and_undoing_again_does_nothing() -> None:
    patched = fusedrnn.patch()
    try:
        assert in_force()
        assert type(nn.LSTM(3, 5)) is fusedrnn.LSTM
    finally:
        patched.undo()
    assert not in_force()
    patched.undo()
    with fusedrnn.patch():
        patched.undo()  # not the one in force
        assert in_force()
    with patched:  # it may be used again
        assert in_force()


def test_patches_nest_and_end_in_any_order() -> None:
    with fusedrnn.patch() as outer:
        with fusedrnn.patch():
            assert in_force()
        assert in_force()
        inner = fusedrnn.patch()
        outer.undo()
        assert in_force()
        inner.undo()
        assert not in_force()
    assert not in_force()


def test_an_exception_ends_the_patch_and_goes_on() -> None:
    def fails() -> None:
        with fusedrnn.patch():
            assert in_force()
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fails()


def test_every_thread_sees_it_and_many_may_patch_at_once() -> None:
    seen: list[bool] = []
    with fusedrnn.patch():
        thread = threading.Thread(target=lambda: seen.append(in_force()))
        thread.start()
        thread.join()
    assert seen == [True]

    barrier = threading.Barrier(4)

    def patch_and_look() -> None:
        barrier.wait()
        for _ in range(50):
            with fusedrnn.patch():
                seen.append(type(nn.GRU(2, 2)) is fusedrnn.GRU)

    threads = [threading.Thread(target=patch_and_look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 201
    assert all(seen)


def test_a_name_somebody_replaced_meanwhile_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(torch_nn.LSTM):
        pass

    with monkeypatch.context() as patching:
        patching.setattr(nn, "LSTM", nn.LSTM)  # what comes back at the end of this block
        with fusedrnn.patch():
            nn.LSTM = Mine
        assert nn.LSTM is Mine
        assert nn.modules.rnn.LSTM is TORCHS["LSTM"]

        patching.setattr(nn, "GRU", Mine)  # and one replaced before comes back
        with fusedrnn.patch():
            assert in_force()
        assert nn.GRU is Mine


def test_pickles_of_torchs_modules_load_as_ours() -> None:
    model = nn.ModuleList([getattr(nn, name)(3, 5) for name in NAMES])
    buffer, x = io.BytesIO(), torch.randn(4, 2, 3)
    torch.save(model, buffer)
    pickled = pickle.dumps(model)
    with fusedrnn.patch():
        buffer.seek(0)
        loaded = [torch.load(buffer, weights_only=False), pickle.loads(pickled)]
    for other in loaded:
        assert [type(m) for m in other] == [getattr(fusedrnn, name) for name in NAMES]
        for ours, theirs, name in zip(other, model, NAMES, strict=True):
            input = x[0] if name.endswith("Cell") else x
            close(ours(input), theirs(input))
    assert type(pickle.loads(pickled)[0]) is TORCHS["RNN"]


def test_what_was_built_under_a_patch_goes_back_to_torchs_classes_under_it_too() -> None:
    with fusedrnn.patch():
        model = nn.Sequential(nn.LSTM(3, 5), nn.Linear(5, 2))
        fusedrnn.to_torch(model)
        assert type(model[0]) is TORCHS["LSTM"]
        assert not isinstance(model[0], nn.LSTM)  # as documented: an instance of the old name
        with pytest.raises(pickle.PicklingError, match="not the same object"):
            pickle.dumps(model)
        fusedrnn.convert(model)
        assert type(model[0]) is fusedrnn.LSTM
        pickle.dumps(model)


LIBRARY = """
from torch import nn
from torch.nn import GRU

class Encoder(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder(3, 5)
        self.gru = GRU(5, 5, bidirectional=True)
        self.cell = nn.LSTMCell(10, 4)
        for module in self.modules():
            if isinstance(module, (nn.LSTM, GRU)):
                nn.init.constant_(module.weight_hh_l0, 0.25)

    def forward(self, x):
        return self.cell(self.gru(self.encoder(x))[0][-1])[0]
"""


def test_a_library_imported_under_a_patch_builds_and_derives_from_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "builds_rnns.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "builds_rnns", raising=False)
    results, x = [], torch.randn(6, 2, 3)
    for patched in (False, True):
        monkeypatch.delitem(sys.modules, "builds_rnns", raising=False)
        torch.manual_seed(0)
        if patched:
            with fusedrnn.patch():
                model: Any = importlib.import_module("builds_rnns").Model()
        else:
            model = importlib.import_module("builds_rnns").Model()
        assert isinstance(model.encoder, fusedrnn.LSTM) is patched
        assert isinstance(model.gru, fusedrnn.GRU) is patched
        assert isinstance(model.cell, fusedrnn.LSTMCell) is patched
        output = model(x)
        output.square().sum().backward()
        assert (model.encoder.weight_hh_l0 == 0.25).all()
        results.append((output, [p.grad for p in model.parameters()]))
    close(results[1], results[0])


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_compiling_under_a_patch_gives_one_graph_and_leaves_dynamo_as_it_was(name: str) -> None:
    x, model = torch.randn(4, 2, 3), nn.Sequential(getattr(nn, name)(3, 5))
    fusedrnn.convert(model)

    def compile_whole() -> None:
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
        close(compiled(x), model(x))

    assert torch._dynamo.config.allow_rnn is False
    with fusedrnn.patch():
        compile_whole()
        with ThreadPoolExecutor(1) as pool:  # a thread has settings of dynamo's of its own
            pool.submit(compile_whole).result()
        torch.export.export(model, (x,))  # sets it, too, and puts it back
    assert torch._dynamo.config.allow_rnn is False
    compile_whole()


def test_a_patch_names_the_modules_that_it_came_too_late_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imports_rnns.py").write_text(
        "from torch.nn import LSTM, Linear\nfrom torch.nn.modules.rnn import GRUCell as Cell\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("imports_rnns")
    late = r"not reach them: .*imports_rnns \(GRUCell, LSTM\).* fusedrnn.convert on the models"
    try:
        with pytest.warns(UserWarning, match=late) as caught, fusedrnn.patch():
            pass
        assert caught[0].filename == __file__
    finally:
        del sys.modules["imports_rnns"]


def test_a_patch_that_comes_in_time_says_nothing(tmp_path: Path) -> None:
    program = "import fusedrnn, torch; fusedrnn.patch(); from torch.nn import LSTM; LSTM(3, 5)"
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

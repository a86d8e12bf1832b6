"""Files of frozen layers: what is saved comes back bit by bit, in a format that others read too,
and what is damaged is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedrnn
from support.frozen_files import about, header_of, of, rewritten

I, H = 7, 19  # noqa: E741
DTYPES = (None, torch.bfloat16, torch.float16, torch.int8)


def frozen(name: str = "LSTM", to: Any = None, **flags: Any) -> Any:
    torch.manual_seed(0)
    return fusedrnn.freeze(getattr(fusedrnn, name)(I, H, **flags), to)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "layer.safetensors"


@pytest.mark.parametrize(
    ("name", "dtype", "flags"),
    [
        *(
            (name, dtype, {"num_layers": 2, "bidirectional": True})
            for name in ("RNN", "LSTM", "GRU", "MGU")
            for dtype in DTYPES
        ),
        ("LSTM", torch.int8, {"proj_size": 5, "batch_first": True}),
        ("LSTM", None, {"num_layers": 2, "dropout": 0.25, "bias": False}),
        ("RNN", None, {"nonlinearity": "relu"}),
        ("GRU", None, {"dtype": torch.float64}),
        ("GRU", None, {"dtype": torch.bfloat16}),
        ("LSTM", None, {"dtype": torch.float16}),
        ("LSTM", torch.int8, {"dtype": torch.bfloat16}),
    ],
)
def test_what_is_saved_is_loaded(name: str, dtype: Any, flags: Any, path: Path) -> None:
    made = frozen(name, dtype, **flags)
    made.save(path)
    found: Any = fusedrnn.load(path)
    assert type(found) is type(made)
    assert repr(found) == repr(made)
    assert not found.training
    own, loaded = made.state_dict(), found.state_dict()
    assert list(loaded) == list(own)
    assert all(torch.equal(loaded[key], own[key]) for key in own)
    x = torch.randn(5, 2, I, dtype=flags.get("dtype"))
    assert torch.equal(found(x)[0], made(x)[0])
    assert type(fusedrnn.thaw(found)) is getattr(fusedrnn, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_package_safetensors_reads_it(dtype: Any, path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    made = frozen("LSTM", dtype, num_layers=2, proj_size=5)
    made.save(path)
    found, own = safetensors.load_file(path), made.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], own[key]) for key in own)
    said = header_of(path)[0]["__metadata__"]
    assert said == {
        "fusedrnn_frozen": "1",
        "mode": "LSTM",
        "input_size": "7",
        "hidden_size": "19",
        "num_layers": "2",
        "bias": "true",
        "batch_first": "false",
        "dropout": "0.0",
        "bidirectional": "false",
        "proj_size": "5",
        "dtype": str(dtype or torch.float32).removeprefix("torch."),
        "layer_dtype": "float32",
    }


def test_tensors_lie_at_multiples_of_their_elements(path: Path) -> None:
    frozen("GRU", torch.int8, bias=False, num_layers=2).save(path)
    sizes = {"F32": 4, "I8": 1}
    header, data = header_of(path)
    assert (path.stat().st_size - len(data)) % 8 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0


def test_a_file_of_int8_is_a_quarter(tmp_path: Path) -> None:
    layer, sizes = fusedrnn.LSTM(256, 256), {}
    for dtype in DTYPES:
        fusedrnn.freeze(layer, dtype).save(tmp_path / "layer")
        sizes[dtype] = (tmp_path / "layer").stat().st_size / 4
    weights = sum(weight.numel() for weight in layer.parameters())
    assert sizes[None] <= weights * 1.001
    assert sizes[torch.bfloat16] <= weights * 0.51
    assert sizes[torch.float16] <= weights * 0.51
    assert sizes[torch.int8] <= weights * 0.26


def test_a_save_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = frozen()
    made.save(path)
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        frozen("GRU").save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        made.save(path.parent / "nowhere" / "layer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (about(fusedrnn_frozen="2"), "version '2', and this fusedrnn reads version 1"),
        (lambda header: header.pop("__metadata__"), "not a frozen layer"),
        (about(mode="CNN"), "mode 'CNN' is unknown"),
        (about(dtype="nn"), "dtype 'nn' is unknown"),
        (about(hidden_size="20"), r"'bias_hh_l0' must be torch.float32 \[60\], got .* \[57\]"),
        (about(num_layers="2"), r"'bias_hh_l1' must be torch.float32 \[57\], got absent"),
        (about(bias="false"), "'bias_hh_l0' must be absent"),
        (about(num_layers="[]"), r"num_layers must be int, got \[\]"),
        (about(num_layers="x"), "Expecting value"),
        (about(num_layers="0"), "num_layers must be greater than zero"),
        (about(bias="1"), "bias must be bool, got 1"),
        (lambda header: header["__metadata__"].pop("bias"), "nothing of bias"),
        (lambda header: header.pop("weight_hh_l0"), r"\[57, 19\], got absent"),
        (of("bias_ih_l0", dtype="F16"), "does not take 228 bytes"),
        (of("bias_ih_l0", dtype="C64"), r"damaged \('C64'\)"),
        (of("bias_ih_l0", data_offsets=[0]), "must be numbers"),
        (of("bias_ih_l0", data_offsets=[0, 10**9]), "cut off"),
        (of("bias_ih_l0", shape="x"), "must be numbers"),
        (of("bias_ih_l0", shape=[-57, -1]), "must be numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change: Any, message: str, path: Path) -> None:
    frozen("GRU").save(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=message) as refused:
        fusedrnn.load(path)
    assert str(refused.value).startswith(f"fusedrnn.load: cannot read {path}: ")


@pytest.mark.parametrize("left", [0, 7, 8, 100, -1])
def test_a_file_that_was_cut_off_is_refused(left: int, path: Path) -> None:
    frozen("GRU").save(path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="cut off"):
        fusedrnn.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        fusedrnn.load(path)

"""Keras' pickled file is read as numpy would read it, and no pickle in it is ever run."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.data import keras_npz
from examples.driver.errors import CorruptFile


def write(path: Path, pickled: bytes, rows: int, labels: Any = None) -> Path:
    """An npz whose x is `pickled`, under the header of an array of `rows` objects."""
    x, y = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        x, {"descr": "|O", "fortran_order": False, "shape": (rows,)}
    )
    np.save(y, np.zeros(rows, np.int64) if labels is None else labels)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", x.getvalue() + pickled)
        archive.writestr("y.npy", y.getvalue())
    return path


def objects(rows: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


def test_a_file_written_by_numpy_is_read(newswires: Any, tmp_path: Path) -> None:
    file = tmp_path / "reuters.npz"
    file.write_bytes(newswires.keras())
    tokens, lengths, labels = keras_npz.read(file)
    assert tokens.tolist() == [*itertools.chain(*newswires.rows)]
    assert lengths.tolist() == [*map(len, newswires.rows)]
    assert labels.tolist() == newswires.labels


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_every_pickle_protocol_and_both_numpys_are_read(
    tmp_path: Path, protocol: int, module: str
) -> None:
    rows = [[1, 2, 3], [], [2**31 - 1]]
    pickled = pickle.dumps(objects(rows), protocol)
    if protocol < 4:  # names are text of any length there; later protocols count them
        pickled = pickled.replace(b"numpy._core.", f"{module}.".encode())
    tokens, lengths, _ = keras_npz.read(write(tmp_path / "r.npz", pickled, 3))
    assert tokens.tolist() == [1, 2, 3, 2**31 - 1]
    assert lengths.tolist() == [3, 0, 1]


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    pickled = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89](](K\x01K\x02e]K\x03aetb."
    )
    tokens, lengths, _ = keras_npz.read(write(tmp_path / "r.npz", pickled, 2))
    assert tokens.tolist() == [1, 2, 3]
    assert lengths.tolist() == [2, 1]


class Runs:
    """Unpickled by pickle itself, makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("inside", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, protocol: int, inside: bool
) -> None:
    evil = Runs(tmp_path / "run")
    pickled = pickle.dumps(objects([[1], [evil]]) if inside else evil, protocol)
    with pytest.raises(CorruptFile, match=r"its pickle names (posix|nt)\.mkdir"):
        keras_npz.read(write(tmp_path / "r.npz", pickled, 2))
    assert not (tmp_path / "run").exists()
    pickle.loads(pickled)  # the same bytes do run where nothing restrains them
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "numpy load",
        "numpy.core.multiarray scalar",
        "os system",
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    pickled = f"c{module}\n{attribute}\n.".encode()
    with pytest.raises(CorruptFile, match=f"its pickle names {module}.{attribute}"):
        keras_npz.read(write(tmp_path / "r.npz", pickled, 1))


TWO = pickle.dumps(objects([[1], [2]]), 2)
NO_INTS: list[Any] = [[[1, "two"]], [[1, 2.0]], [(1, 2)], [[True]], [[[1]]], [None], [[2**31]]]


@pytest.mark.parametrize(
    ("pickled", "rows", "labels", "message"),
    [
        *((pickle.dumps(objects(rows), 2), 1, 1, "is corrupt") for rows in NO_INTS),
        (b"", 1, 1, "is corrupt"),
        (b"garbage", 1, 1, "is corrupt"),
        (pickle.dumps([[1]]), 1, 1, "its pickle is not an array of objects"),
        (TWO[:-20], 2, 2, "is corrupt"),
        (TWO, 2, 3, "y must be 2 integers"),
        (TWO, 3, 3, "x announces 3 rows and has 2"),
    ],
    ids=[*map(str, NO_INTS), "empty", "garbage", "no array", "cut", "labels", "rows"],
)
def test_anything_but_rows_of_ints_with_as_many_labels_is_refused(
    tmp_path: Path, pickled: bytes, rows: int, labels: int, message: str
) -> None:
    file = write(tmp_path / "r.npz", pickled, rows, np.zeros(labels, np.int64))
    with pytest.raises(CorruptFile, match=message):
        keras_npz.read(file)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "reuters.npz"
    file.write_bytes(b"<html>")
    with pytest.raises(CorruptFile, match="not a zip file"):
        keras_npz.read(file)

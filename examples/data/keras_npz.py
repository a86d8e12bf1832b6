"""Reads Keras' ``reuters.npz`` and ``imdb.npz``, pickled arrays of lists, running no pickle.

``np.load(allow_pickle=True)`` would call whatever the file names. Here the names such an array
needs are bound to inert stand-ins that only keep the data, every other name is refused, and what
comes out must be lists of ints: the file can carry word ranks and nothing else.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.driver.errors import CorruptFile


def read(
    path: Path, x: str = "x", y: str = "y"
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Word ranks of all rows end to end, the length [N] of each row, and labels [N]; `x` and `y`
    name the arrays of rows and of labels in the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            rows = _object_array(archive.read(f"{x}.npy"))
            stream = io.BytesIO(archive.read(f"{y}.npy"))
            labels = np.lib.format.read_array(stream, allow_pickle=False)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(rows):
            raise ValueError(f"{y} must be {len(rows)} integers, got {labels.dtype} {labels.shape}")
        lengths = np.array([*map(len, rows)], np.int32)
        tokens = np.fromiter((rank for row in rows for rank in row), np.int32, lengths.sum())
    except Exception as error:  # a hostile pickle can raise anything
        raise CorruptFile(path, error) from error
    return tokens, lengths, labels.astype(np.int32)


def _object_array(npy: bytes) -> list[list[int]]:
    stream = io.BytesIO(npy)
    major, minor = np.lib.format.read_magic(stream)
    read_header = getattr(np.lib.format, f"read_array_header_{major}_{minor}")
    shape, _, dtype = read_header(stream)
    if dtype.kind != "O" or len(shape) != 1:
        raise ValueError(f"x must be a 1-D array of lists, got {dtype} {shape}")
    rows = _load(stream)
    if len(rows) != shape[0]:
        raise ValueError(f"x announces {shape[0]} rows and has {len(rows)}")
    for row in rows:
        if type(row) is not list or any(type(rank) is not int for rank in row):
            raise ValueError("x holds something else than lists of ints")
    return rows


def _load(stream: io.BytesIO) -> list[list[int]]:
    # Made anew for each file: a pickle may set attributes on what it names.
    class Array:
        """In numpy's place: __setstate__ gets (version, shape, dtype, fortran, items)."""

        items: Any = None

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.items = state[4]

    class Inert:
        """dtype, and the class and byte string that are only arguments of _reconstruct."""

        def __init__(self, *_: object) -> None: ...

        def __setstate__(self, _: object) -> None: ...

    def reconstruct(*_: object) -> Array:
        return Array()

    admitted = {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,  # numpy 1
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,  # numpy 2
        ("numpy", "ndarray"): Inert,
        ("numpy", "dtype"): Inert,
        ("_codecs", "encode"): Inert,  # how protocol 2 spells bytes
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return admitted[module, name]
            except KeyError:
                raise pickle.UnpicklingError(f"its pickle names {module}.{name}") from None

    array = Unpickler(stream).load()
    if type(array) is not Array or type(array.items) is not list:
        raise ValueError("its pickle is not an array of objects")
    return array.items

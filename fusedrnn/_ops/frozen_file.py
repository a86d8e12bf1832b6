"""Files of frozen layers: safetensors, which csrc/frozen/file.cpp reads too, without Python.

A file is the length of its header (8 bytes, little-endian), the header in JSON, padded with blanks,
and the tensors one after another. The header gives dtype, shape and place of each tensor; under
``__metadata__`` it says in strings what the layer is: ``fusedrnn_frozen`` (the version of this
format), mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
proj_size, dtype (of W_ih and W_hh) and layer_dtype (of the layer that was frozen). Tensors are
those of ``state_dict()``, the widest elements first: each lies at a multiple of its element.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VERSION = "1"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_of(said: str) -> torch.dtype:
    """A dtype as ``__metadata__`` has it."""
    for dtype in DTYPES.values():
        if said == str(dtype).removeprefix("torch."):
            return dtype
    raise ValueError(f"dtype {said!r} is unknown")


def write(
    path: str | os.PathLike[str], about: Mapping[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write a file whole or not at all.

    Args:
        path: where; a file that is there is replaced.
        about: what ``__metadata__`` says, apart from the version.
        tensors: by name.
    """
    said = {"fusedrnn_frozen": VERSION}
    said |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}
    header: dict[str, Any] = {"__metadata__": said}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    at = 0
    for name, value in ordered:
        end = at + value.numel() * value.element_size()
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    # Written aside and renamed, so that a reader finds the whole old file or the whole new one.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb") as made:
            made.write(len(text).to_bytes(8, "little") + text)
            for _, value in ordered:
                made.write(value.contiguous().view(torch.uint8).numpy().data)
            made.flush()
            os.fsync(made.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a file says of its layer, and its tensors.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: a damaged file, or one of another kind.
    """
    data = Path(path).read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or begin > len(data):
        raise ValueError("it is cut off, or no safetensors file")
    try:
        header = json.loads(data[8:begin])
        said = header.pop("__metadata__", {})
        tensors = {name: _tensor(name, entry, data, begin) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its header is damaged ({error})") from error
    version = said.get("fusedrnn_frozen")
    if version != VERSION:
        raise ValueError(
            "it is not a frozen layer of fusedrnn"
            if version is None
            else f"it is of version {version!r}, and this fusedrnn reads version {VERSION}"
        )
    return said, tensors


def _tensor(name: str, entry: dict[str, Any], data: bytes, begin: int) -> Tensor:
    dtype, shape, place = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    whole = all(isinstance(n, int) and n >= 0 for n in [*shape, *place])
    if not whole or len(place) != 2:
        raise ValueError(f"shape and place of tensor {name!r} must be numbers")
    first, last = place
    if not first < last <= len(data) - begin:
        raise ValueError(f"it is cut off: it has not all of tensor {name!r}")
    if math.prod(shape) * dtype.itemsize != last - first:
        raise ValueError(f"tensor {name!r} {shape} does not take {last - first} bytes")
    own = bytearray(data[begin + first : begin + last])
    return torch.frombuffer(own, dtype=dtype).reshape(shape)

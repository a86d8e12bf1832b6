"""Loads the extension, and answers what its kernels and plans are asked.

Importing this registers torch.ops.fusedrnn: ``layer`` (one layer, D directions),
``layer_backward``, ``stack`` (all layers, dropout between them), ``frozen`` (a stack whose weights
are packed) and ``cell`` (one step).
"""

from __future__ import annotations

import warnings

from . import _C, _binary, experience
from ._ops import definition as definition
from ._ops import fake as fake
from ._ops import second as second
from ._ops import vmap as vmap

cpu_isa = _C.cpu_isa
cpu_isas = _C.cpu_isas
Restriction = _C.Restriction
cuda_choice = _C.cuda_choice
cuda_device = _C.cuda_device
cuda_plan = _C.cuda_plan
cuda_restriction = _C.cuda_restriction
explain = _C.explain
fma_peak = _C.fma_peak
reserve_width = _C.reserve_width
rnn_takes_tf32 = _C.rnn_takes_tf32


def _warn_of_missing_cuda() -> None:
    warnings.warn(f"{_binary.cuda_missing()}. Until then torch.nn runs on the GPU", stacklevel=2)


_C.set_experience_loader(experience.load)
if not _binary.build_info()["cuda"]:
    _C.set_cuda_missing(_binary.cuda_missing(), _warn_of_missing_cuda)

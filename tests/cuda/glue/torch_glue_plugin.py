"""A pytest plugin: from here on, layers on the CPU are run by the CUDA half (torch_glue.cpp)."""

import os
import sys
from pathlib import Path
from typing import Any

# The installed package, which has its compiled half: `python -m pytest` puts the checkout first. Of
# an editable install it is the checkout.
ROOT = Path(__file__).resolve().parents[3]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT] + [str(ROOT)]

import torch  # noqa: E402

import fusedrnn as fusedrnn  # noqa: E402  its CPU kernels first, to be replaced

torch.ops.load_library(os.environ["FUSEDRNN_GLUE"])
# Tests of layers hold results to float32's accuracy; those of TF32 say so.
rnn: Any = torch.backends.cudnn.rnn
rnn.fp32_precision = "ieee"

# Or what follows would test the CPU kernels once more.
for operator in ("fusedrnn::layer", "fusedrnn::layer_backward"):
    table = torch._C._dispatch_dump(operator).splitlines()
    taken = next(line for line in table if line.startswith("CPU"))
    assert "ops/cuda/" in taken, taken

"""On PYTHONPATH, lets what is written for a GPU run where there is none: torch tells of one, what
it is asked to put there stays on the CPU, layers are run by the CUDA half on the host
(torch_glue.cpp, named by FUSEDRNN_GLUE), and a captured graph is a list of operators, replayed one
by one. So the programs of tools/gpu_check.sh and the tests that need a GPU are rehearsed as they
stand. What only a GPU has, time and memory of its own and work that goes on beside the caller's, is
not there.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

# The rest stays as it is: pip, say, and what it starts.
PROGRAMS = {
    *("gpu_machine.py", "cuda_core.py", "gpu_profile.py", "benchmarks"),
    *("pytest", "distributed_worker.py"),
}


command = " ".join(sys.orig_argv)
program = next((n for a in sys.orig_argv[1:] if (n := Path(a).name) in PROGRAMS), "")
if "exec(eval(sys.stdin.readline()))" in command:
    program = "pytest"  # a worker of xdist's
if program or "get_device_name" in command:
    pretended_gpu = importlib.import_module("pretended_gpu")  # which imports torch
    pretended_gpu.pretend()
    if program not in ("gpu_machine.py", "") and "FUSEDRNN_GLUE" in os.environ:
        pretended_gpu.load()

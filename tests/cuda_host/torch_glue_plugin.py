"""A pytest plugin: from here on, layers on the CPU are run by the CUDA half (torch_glue.cpp)."""

import os

import torch

import conftest as conftest  # the installed fusedrnn before the checkout's sources
import fusedrnn as fusedrnn  # its CPU kernels first, to be replaced

torch.ops.load_library(os.environ["FUSEDRNN_GLUE"])

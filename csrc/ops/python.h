// What the parts of the module _C share.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "model/problem.h"

namespace fusedrnn::ops {

// A problem as Python states it: a dict of mode and dtype and, where they matter, T, B, I, H, P (0:
// h is not projected), training and packed.
Problem problem_of(const pybind11::dict& stated);

// Add what Python asks of the CUDA half, and frozen stacks.
void bind_cuda(pybind11::module_& m);
void bind_frozen(pybind11::module_& m);

}  // namespace fusedrnn::ops

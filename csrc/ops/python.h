// What the parts of the module _C share.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "model/problem.h"

namespace fusedrnn::ops {

// A problem as Python states it: P is 0 where h is not projected.
Problem problem_of(const std::string& mode, const std::string& dtype, int64_t T, int64_t B,
                   int64_t I, int64_t H, int64_t P, bool training, bool packed);

// Adds what Python asks of the CUDA half.
void bind_cuda(pybind11::module_& m);

}  // namespace fusedrnn::ops

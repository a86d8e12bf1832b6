// Stands before torch's header of this name on the include path.
#pragma once

#include <c10/util/Exception.h>

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, "CUDA error: ", #call)

// Where the rows of a packed batch's steps begin, on the device.
#pragma once

#include <c10/cuda/CUDAStream.h>

#include "ops/check.h"

namespace fusedrnn::ops {

// Problem::offsets on the stream's device, without waiting for it; undefined unless packed. The
// last few are kept, so that the layers of a stack, forward and backward, share one copy.
Tensor device_offsets(const Call& call, const c10::cuda::CUDAStream& stream);

}  // namespace fusedrnn::ops

// torch.nn's own path through a stack or a cell: on a GPU where cuDNN is estimated to be faster,
// and for everything there when only the CPU half was built.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "ops/layer.h"

namespace fusedrnn::ops {

// Half precision is stored, float32 is computed with: one conversion a call on each side.
inline at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

// Set by Python, which knows the build: why there is no CUDA half and how to build it, and what
// warns of that.
struct CudaMissing {
  std::string reason = "fusedrnn was built without its CUDA half";
  std::function<void()> warn;
};
CudaMissing& cuda_missing();

// Whether this build has kernels for the tensor's device.
inline bool has_kernels([[maybe_unused]] const Tensor& tensor) {
#ifdef FUSEDRNN_WITH_CUDA
  return true;
#else
  return !tensor.is_cuda();
#endif
}

// torch's switch for RNNs on CUDA, which cuDNN goes by: true unless it says `ieee`.
bool rnn_takes_tf32();

// torch.nn's result where its path is the one to take; `type` is what it would compute in.
std::optional<StackResult> by_torch(const Stack& s, at::ScalarType type);

// torch.nn's cell, for a device without kernels.
StepResult cell_by_torch(const Step& s);

}  // namespace fusedrnn::ops

// Stands before torch's header of this name on the include path.
#pragma once

#include <c10/cuda/CUDAStream.h>

namespace c10::cuda {

class CUDAStreamGuard {
 public:
  explicit CUDAStreamGuard(const CUDAStream& stream) : before_(current_stream()) {
    current_stream() = stream.stream();
  }
  ~CUDAStreamGuard() { current_stream() = before_; }
  CUDAStreamGuard(const CUDAStreamGuard&) = delete;
  CUDAStreamGuard& operator=(const CUDAStreamGuard&) = delete;

 private:
  cudaStream_t before_;
};

}  // namespace c10::cuda

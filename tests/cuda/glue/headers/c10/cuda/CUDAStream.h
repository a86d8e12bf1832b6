// Stands before torch's header of this name on the include path: one device, whose current stream
// is the main one unless a guard says otherwise.
#pragma once

#include <c10/core/Device.h>

#include "cuda_runtime_api.h"

namespace c10::cuda {

class CUDAStream {
 public:
  explicit CUDAStream(cudaStream_t stream = nullptr) : stream_(stream) {}
  DeviceIndex device_index() const { return 0; }
  cudaStream_t stream() const { return stream_; }

 private:
  cudaStream_t stream_;
};

inline cudaStream_t& current_stream() {
  static thread_local cudaStream_t stream = nullptr;
  return stream;
}

inline CUDAStream getCurrentCUDAStream(DeviceIndex /*device*/ = -1) {
  return CUDAStream(current_stream());
}
inline CUDAStream getStreamFromExternal(cudaStream_t stream, DeviceIndex /*device*/) {
  return CUDAStream(stream);
}

}  // namespace c10::cuda

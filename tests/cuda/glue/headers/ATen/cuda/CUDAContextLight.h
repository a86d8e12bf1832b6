// Stands before torch's header of this name on the include path: a handle, and a workspace for each
// stream.
#pragma once

#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <cstdlib>

#include "cublasLt.h"

namespace at::cuda {

inline cublasLtHandle_t getCurrentCUDABlasLtHandle() { return glue::handle(); }
inline size_t getCUDABlasLtWorkspaceSize() { return glue::kWorkspaceBytes; }

// Allocates, which a stream outside of the graph that is being captured must not.
inline void* getCUDABlasLtWorkspace() {
  const cudaStream_t stream = c10::cuda::current_stream();
  TORCH_CHECK(!std::getenv("FUSEDRNN_HOST_CAPTURES") || glue::Streams::all().is_forked(stream),
              "operation not permitted when a stream is capturing");
  return glue::workspace_of(stream);
}

}  // namespace at::cuda

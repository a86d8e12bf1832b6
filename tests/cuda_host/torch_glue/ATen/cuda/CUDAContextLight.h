// Stands before torch's header of this name on the include path: a handle, and a workspace for each
// stream.
#pragma once

#include <c10/cuda/CUDAStream.h>

#include <map>

#include "cublasLt.h"

namespace at::cuda {

inline cublasLtHandle_t getCurrentCUDABlasLtHandle() { return glue::handle(); }
inline size_t getCUDABlasLtWorkspaceSize() { return glue::kWorkspaceBytes; }
inline void* getCUDABlasLtWorkspace() { return glue::workspace_of(c10::cuda::current_stream()); }

}  // namespace at::cuda

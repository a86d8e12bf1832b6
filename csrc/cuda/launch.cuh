// Starting a kernel: grid of `blocks` by `rows`, clusters along the first. Returns a cudaError_t.
#pragma once

#include <cuda_runtime.h>

#include "recurrence.h"

namespace fusedrnn::cuda {

template <class Params>
int launch(void (*kernel)(Params), const Params& params, int64_t blocks, int rows, int threads,
           int cluster, int64_t shared_bytes, void* stream) {
  const void* symbol = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        symbol, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  if (cluster > 8) {
    const cudaError_t error =
        cudaFuncSetAttribute(symbol, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks), unsigned(rows));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace fusedrnn::cuda

// Starting a kernel: grid of `blocks` by `rows`, clusters along the first. Returns a cudaError_t.
#pragma once

#include <cuda_runtime.h>

#include "recurrence.h"

namespace fusedrnn::cuda {

// The caller raises the error: left behind, it would be found after somebody else's launch.
inline int refused(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

template <class Params>
int launch(void (*kernel)(Params), const Params& params, int64_t blocks, int rows, int threads,
           int cluster, int64_t shared_bytes, void* stream) {
  const void* symbol = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        symbol, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return refused(error);
  }
  if (cluster > 8) {
    const cudaError_t error =
        cudaFuncSetAttribute(symbol, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return refused(error);
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
  return refused(cudaLaunchKernelEx(&config, kernel, params));
}

// How many clusters of this kernel the device runs at once; 0 where it can have none.
template <class Params>
int resident_clusters(void (*kernel)(Params), int threads, int cluster, int64_t shared_bytes) {
  const void* symbol = reinterpret_cast<const void*>(kernel);
  cudaFuncSetAttribute(symbol, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
  if (cluster > 8) cudaFuncSetAttribute(symbol, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(cluster));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  const bool possible = cudaOccupancyMaxActiveClusters(&count, symbol, &config) == cudaSuccess;
  cudaGetLastError();  // a refusal is an answer here, not the caller's error
  return possible ? count : 0;
}

}  // namespace fusedrnn::cuda

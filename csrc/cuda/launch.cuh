// Starting a kernel: grid of `blocks` by `rows`, clusters along the first. Returns a cudaError_t.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

#include "cuda/params.h"

namespace fusedrnn::cuda {

// The caller raises the error: left behind, it would be found after somebody else's launch.
inline int refused(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// Allows a kernel its shared memory and its cluster on the current device. An attribute lasts, and
// setting one takes about a microsecond, so each is set once for a kernel and a device, and again
// where the kernel asks for more memory than before.
inline cudaError_t allow(const void* kernel, int cluster, int64_t shared_bytes) {
  constexpr int64_t kUnasked = 48 * 1024;  // bytes that every kernel may have
  if (shared_bytes <= kUnasked && cluster <= 8) return cudaSuccess;
  static std::mutex mutex;
  static auto* const allowed = new std::map<std::pair<const void*, int>, int64_t>;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::pair key(kernel, device);
  const std::lock_guard lock(mutex);
  if (const auto known = allowed->find(key);
      known != allowed->end() && known->second >= shared_bytes) {
    return cudaSuccess;
  }
  if (shared_bytes > kUnasked)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(shared_bytes));
  if (error == cudaSuccess && cluster > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) (*allowed)[key] = shared_bytes;
  return error;
}

template <class Params>
int launch(void (*kernel)(Params), const Params& params, int64_t blocks, int rows, int threads,
           int cluster, int64_t shared_bytes, void* stream) {
  const cudaError_t error = allow(reinterpret_cast<const void*>(kernel), cluster, shared_bytes);
  if (error != cudaSuccess) return refused(error);
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

// How many clusters of this kernel the device runs at once; 0 where it can have none, and where the
// driver made the kernel of PTX for less than 9.0, which has no code for clusters.
template <class Params>
int resident_clusters(void (*kernel)(Params), int threads, int cluster, int64_t shared_bytes) {
  const void* symbol = reinterpret_cast<const void*>(kernel);
  cudaFuncAttributes made{};
  const bool usable = cudaFuncGetAttributes(&made, symbol) == cudaSuccess &&
                      made.ptxVersion >= 90 && allow(symbol, cluster, shared_bytes) == cudaSuccess;
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
  const bool possible =
      usable && cudaOccupancyMaxActiveClusters(&count, symbol, &config) == cudaSuccess;
  cudaGetLastError();  // a refusal is an answer here, not the caller's error
  return possible ? count : 0;
}

}  // namespace fusedrnn::cuda

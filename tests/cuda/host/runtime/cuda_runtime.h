// As much of CUDA's runtime as csrc/cuda/launch.cuh and device.cu call, counting what it was asked.
#pragma once

#include <atomic>
#include <cstddef>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrClockRate,
  cudaDevAttrClusterLaunch
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = struct Stream*;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaFuncAttributes {
  int ptxVersion;
};

namespace runtime {
inline int current = 0, kilohertz = 0, ptx = 90;
inline std::atomic<int> memory_set = 0, clusters_allowed = 0, launches = 0;
inline cudaError_t refusal = cudaSuccess;  // of the next attribute
}  // namespace runtime

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = runtime::current;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  runtime::current = device;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int) {
  const bool memory = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize;
  ++(memory ? runtime::memory_set : runtime::clusters_allowed);
  const cudaError_t error = runtime::refusal;
  runtime::refusal = cudaSuccess;
  return error;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  found->ptxVersion = runtime::ptx;
  return cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void*,
                                                  const cudaLaunchConfig_t*) {
  *count = 7;
  return cudaSuccess;
}
template <class Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t*, void (*)(Params), const Params&) {
  ++runtime::launches;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
           : attribute == cudaDevAttrMultiProcessorCount    ? 132
           : attribute == cudaDevAttrClockRate              ? runtime::kilohertz
           : attribute == cudaDevAttrComputeCapabilityMinor ? 0
                                                            : 1;
  return cudaSuccess;
}

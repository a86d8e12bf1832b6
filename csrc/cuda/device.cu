// What the CUDA runtime says of a device and of its errors.
#include <cuda_runtime.h>

#include "cuda/persistent/persistent.h"
#include "cuda/tuning.h"

namespace fusedrnn::cuda {

Device device(int index, int* error) {
  Device found{};
  int major = 0, minor = 0, shared = 0, kilohertz = 0, clusters = 0;
  auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (*error == 0) *error = cudaDeviceGetAttribute(value, attribute, index);
  };
  *error = 0;
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  ask(&found.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(&kilohertz, cudaDevAttrClockRate);
  ask(&clusters, cudaDevAttrClusterLaunch);
  // The attributes are the device's of that index, occupancy is the current one's.
  int current = 0;
  if (*error == 0) *error = cudaGetDevice(&current);
  if (*error == 0) *error = cudaSetDevice(index);
  found.sm = 10 * major + minor;
  found.shared_bytes = shared;
  found.clock_ghz = kilohertz > 0 ? kilohertz * 1e-6 : kAssumedClock;
  found.clusters[0] = found.multiprocessors;
  for (int i = 1; i < 5 && *error == 0; ++i)
    found.clusters[i] = clusters ? resident_clusters_of(1 << i) : 0;
  if (*error == 0) *error = cudaSetDevice(current);
  return found;
}

const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace fusedrnn::cuda

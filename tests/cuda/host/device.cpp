// The GPU that the shim pretends to be: one of the architectures the plan knows, by
// FUSEDRNN_HOST_SM, with the limits of a common model. Takes the place of csrc/cuda/device.cu.
#include <cstdlib>

#include "cuda/params.h"

namespace fusedrnn::cuda {

namespace {

constexpr Device kDevices[] = {FUSEDRNN_GPUS};  // fusedrnn.plan.GPUS, by tests/support/shim.py
constexpr int kNoDevice = 100;

}  // namespace

Device device(int index, int* error) {
  const char* const wish = std::getenv("FUSEDRNN_HOST_SM");
  const int sm = wish ? std::atoi(wish) : 90;
  for (const Device& device : kDevices) {
    if (device.sm != sm || index != 0) continue;
    *error = 0;
    return device;
  }
  *error = kNoDevice;
  return {};
}

const char* error_string(int error) {
  switch (error) {
    case 0:
      return "no error";
    case 1:
      return "invalid argument";
    case 9:
      return "invalid configuration argument";
    case kNoDevice:
      return "no CUDA-capable device is detected";
    default:
      return "unrecognized error code";
  }
}

}  // namespace fusedrnn::cuda

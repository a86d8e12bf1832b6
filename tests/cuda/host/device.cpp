// The GPU that the shim pretends to be: one of the architectures the plan knows, by
// FUSEDRNN_HOST_SM, with the limits of a common model. Takes the place of csrc/cuda/device.cu.
#include <cstdlib>

#include "cuda/params.h"

namespace fusedrnn::cuda {

namespace {

constexpr int64_t kKiB = 1024;
constexpr Device kDevices[] = {
    {75, 40, 64 * kKiB, 1.59, {40, 0, 0, 0, 0}},         // T4
    {80, 108, 163 * kKiB, 1.41, {108, 0, 0, 0, 0}},      // A100
    {86, 84, 99 * kKiB, 1.74, {84, 0, 0, 0, 0}},         // A40
    {89, 142, 99 * kKiB, 2.49, {142, 0, 0, 0, 0}},       // L40S
    {90, 132, 227 * kKiB, 1.98, {132, 66, 32, 16, 8}},   // H200
    {100, 148, 227 * kKiB, 1.96, {148, 74, 36, 16, 8}},  // B200
    {120, 170, 99 * kKiB, 2.41, {170, 0, 0, 0, 0}},      // GeForce RTX 5090
};
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

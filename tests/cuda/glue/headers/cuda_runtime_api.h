// Stands before the CUDA runtime's header of this name on the include path: streams and events of
// streams.h, captured when the environment says so.
#pragma once

#include <cstdlib>

#include "streams.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorNotPermitted = 800,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};
using cudaStream_t = void*;
using cudaEvent_t = glue::Event*;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new char;
  return flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new glue::Event;
  return flags == cudaEventDisableTiming ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  glue::Streams::all().record(*event, stream);
  return cudaSuccess;
}

inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  glue::Streams::all().wait(stream, *event);
  return flags == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  const bool captured = std::getenv("FUSEDRNN_HOST_CAPTURES");
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status,
                                            unsigned long long* id) {
  const char* const captures = std::getenv("FUSEDRNN_HOST_CAPTURES");
  *status = captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  *id = captures ? std::strtoull(captures, nullptr, 10) : 0;
  return cudaSuccess;
}

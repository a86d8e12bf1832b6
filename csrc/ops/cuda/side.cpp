// See side.h.
#include "ops/cuda/side.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <map>
#include <mutex>
#include <utility>

namespace fusedrnn::ops {
namespace {

c10::cuda::CUDAStream beside(const c10::cuda::CUDAStream& main) {
  static std::mutex mutex;
  static auto& streams = *new std::map<std::pair<int, cudaStream_t>, cudaStream_t>;
  const int device = main.device_index();
  const std::lock_guard<std::mutex> lock(mutex);
  cudaStream_t& stream = streams[{device, main.stream()}];
  if (!stream) {
    // Not part of a graph, even while one is captured.
    const c10::cuda::CUDAStreamCaptureModeGuard relaxed(cudaStreamCaptureModeRelaxed);
    C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  return c10::cuda::getStreamFromExternal(stream, c10::DeviceIndex(device));
}

}  // namespace

Side::Side(const c10::cuda::CUDAStream& main, Precision precision)
    : main_(main), side_(beside(main)), precision_(precision) {
  C10_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
}

Side::~Side() {
  // Left by an error; another one here would be of the same cause.
  if (forked_ && cudaEventRecord(event_, side_.stream()) == cudaSuccess)
    (void)cudaStreamWaitEvent(main_.stream(), event_, 0);
  (void)cudaEventDestroy(event_);
}

void Side::fork() {
  order(main_, side_);
  forked_ = true;
  // Not before: torch may allocate a workspace, which while the first stream is being captured it
  // can for streams that are part of the same graph.
  if (!product_) product_.emplace(precision_, side_);
}

void Side::join() {
  order(side_, main_);
  forked_ = false;
}

void Side::order(const c10::cuda::CUDAStream& first, const c10::cuda::CUDAStream& then) {
  C10_CUDA_CHECK(cudaEventRecord(event_, first.stream()));
  C10_CUDA_CHECK(cudaStreamWaitEvent(then.stream(), event_, 0));
}

}  // namespace fusedrnn::ops

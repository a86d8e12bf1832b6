// See offsets.h.
#include "ops/cuda/offsets.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <deque>
#include <mutex>

namespace fusedrnn::ops {
namespace {

// A copy belongs to the stream that made it, which alone is sure to find it there; one that was
// captured to its graph, whose memory it lies in, and is made anew by each replay.
struct Place {
  int device;
  cudaStream_t stream;
  unsigned long long capture;  // 0: none

  bool operator==(const Place& other) const {
    return device == other.device && stream == other.stream && capture == other.capture;
  }
};

struct Copy {
  Place place;
  std::vector<int64_t> offsets;
  Tensor device;
};

Place place_of(const c10::cuda::CUDAStream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream.stream(), &status, &id));
  const bool captured = status != cudaStreamCaptureStatusNone;
  return {stream.device_index(), stream.stream(), captured ? id : 0};
}

// Numbers on the stream's device. They are copied from pinned memory, so nobody waits.
Tensor copied(const std::vector<int64_t>& numbers, const Place& place, c10::Device device) {
  const auto count = int64_t(numbers.size());
  const Tensor host = at::empty({count}, at::TensorOptions(at::kLong).pinned_memory(true));
  std::memcpy(host.data_ptr(), numbers.data(), count * sizeof(int64_t));
  if (place.capture) {
    // A captured copy reads its source on every replay, and no graph tells when it goes away.
    static std::mutex mutex;
    static auto& sources = *new std::vector<Tensor>;
    const std::lock_guard<std::mutex> lock(mutex);
    sources.push_back(host);
  }
  Tensor copy = at::empty({count}, at::TensorOptions(at::kLong).device(device));
  return copy.copy_(host, /*non_blocking=*/true);
}

}  // namespace

Tensor index_on_device(const std::vector<int64_t>& index, c10::Device device) {
  return copied(index, place_of(c10::cuda::getCurrentCUDAStream(device.index())), device);
}

Tensor device_offsets(const Call& call, const c10::cuda::CUDAStream& stream) {
  if (call.offsets.empty()) return {};
  // By content: to compare it takes less than the check of batch_sizes, and no tensor that changed
  // behind its version counter can be taken for another.
  constexpr size_t kMost = 8;
  static std::mutex mutex;
  static auto& copies = *new std::deque<Copy>;  // the last used first; outlives the CUDA context
  const Place place = place_of(stream);
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto copy = copies.begin(); copy != copies.end(); ++copy) {
    if (!(copy->place == place) || copy->offsets != call.offsets) continue;
    if (copy != copies.begin()) {
      Copy found = std::move(*copy);
      copies.erase(copy);
      copies.push_front(std::move(found));
    }
    return copies.front().device;
  }
  const Tensor device = copied(call.offsets, place, call.input.device());
  if (copies.size() >= kMost) copies.pop_back();
  copies.push_front({place, call.offsets, device});
  return device;
}

}  // namespace fusedrnn::ops

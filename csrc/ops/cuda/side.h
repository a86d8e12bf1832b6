// A second stream beside the current one: products run on it while the recurrence, which leaves
// multiprocessors idle, goes on.
#pragma once

#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <optional>

#include "ops/cuda/product.h"

namespace fusedrnn::ops {

// A stream of its own for each stream of the caller's (and never one of torch's pool, which others
// may use): what is captured on the one makes the other part of the same graph, and then nobody
// else's work may come there.
//
// Memory: whatever the second stream touches was allocated for the first one before, and freed
// memory is given again to work that the first one is given later. So it is enough that the first
// stream has waited for the second by the time that it is given anything but the recurrence: join()
// sees to it, and the destructor where an error came between.
class Side {
 public:
  Side(const c10::cuda::CUDAStream& main, Precision precision);
  ~Side();
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;

  // What the second stream is given from here on runs after what the first was given so far.
  void fork();
  // And the other way round.
  void join();
  // Products on the second stream, once it was forked.
  const Products& product() const { return *product_; }

 private:
  void order(const c10::cuda::CUDAStream& first, const c10::cuda::CUDAStream& then);

  c10::cuda::CUDAStream main_, side_;
  // One is enough: a wait takes the event as it was last recorded, and one thread does both.
  cudaEvent_t event_;
  bool forked_ = false;
  Precision precision_;
  std::optional<Products> product_;
};

}  // namespace fusedrnn::ops

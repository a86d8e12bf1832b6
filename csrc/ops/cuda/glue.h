// What forward and backward on a CUDA device share: the state of torch they run under, where parts
// lie, the pieces that a sequence is taken in, and what they tell of a kernel that did not start.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/alias.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "cuda/params.h"
#include "ops/check.h"
#include "ops/choice.h"
#include "ops/cuda/product.h"

namespace fusedrnn::ops {

// While it lives, the input's device is current, and torch's operators are what they are named: no
// autograd, no autocast.
class Scope {
 public:
  explicit Scope(const Tensor& input);

  int device() const { return stream_.device_index(); }
  const c10::cuda::CUDAStream& current() const { return stream_; }
  void* stream() const { return stream_.stream(); }
  // Torch's switch for RNNs asks for exact products.
  bool is_ieee() const { return ieee_; }
  Precision precision() const { return precision_; }
  // On the current stream.
  const Products& product() const { return product_; }

 private:
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::impl::ExcludeDispatchKeyGuard no_autocast_;
  c10::DeviceGuard guard_;
  c10::cuda::CUDAStream stream_;
  bool ieee_;
  Precision precision_;
  Products product_;
};

// The plan among kernels of ours.
cuda::Plan plan_of(cuda::Pass pass, const Call& call, const Scope& scope);

// A launch that the GPU refused; `reason` is its own word for it.
struct NotStarted : c10::Error {
  NotStarted(const std::string& message, const char* reason)
      : c10::Error({__func__, __FILE__, __LINE__}, message), reason(reason) {}
  const char* reason;
};
void check_started(int error, cuda::Pass pass, const Problem& problem, const cuda::Plan& plan);

// Steps that a launch of the recurrence takes: the plan's, or FUSEDRNN_CUDA_CHUNK's (0: all of
// them), which is for tests and tuning. At least 1, at most T.
int64_t chunk_of(const cuda::Plan& plan, int64_t T);

struct RowSpan {
  int64_t first, count;
};
// Rows of time steps [begin, end).
inline RowSpan rows_of_times(const Problem& p, int64_t begin, int64_t end) {
  return {p.rows().offset(begin), p.rows().offset(end) - p.rows().offset(begin)};
}

// A matrix that lies in `tensor` from an element on, its rows `ld` elements apart.
inline Tensor view(const Tensor& tensor, int64_t element, int64_t rows, int64_t columns,
                   int64_t ld) {
  return tensor.as_strided({rows, columns}, {ld, 1}, tensor.storage_offset() + element);
}

// Rows of a matrix, other ones each time step: one view that is moved, because to make a new one
// takes the host as long as a kernel takes the device.
class Window {
 public:
  Window() = default;
  explicit Window(const Tensor& matrix)
      : view_(at::alias(matrix)),
        columns_(matrix.size(1)),
        ld_(matrix.stride(0)),
        first_(matrix.storage_offset()) {}
  // One whose row 0 lies, or would lie, at an element of `memory`.
  Window(const Tensor& memory, int64_t element, int64_t columns, int64_t ld)
      : view_(at::alias(memory)),
        columns_(columns),
        ld_(ld),
        first_(memory.storage_offset() + element) {}

  // Valid until the next call.
  Tensor& rows(int64_t begin, int64_t count) {
    const int64_t sizes[] = {count, columns_}, strides[] = {ld_, 1};
    view_.unsafeGetTensorImpl()->set_sizes_and_strides(
        at::IntArrayRef(sizes), at::IntArrayRef(strides), first_ + begin * ld_);
    return view_;
  }

 private:
  Tensor view_;
  int64_t columns_ = 0, ld_ = 0, first_ = 0;
};

// Whether backward makes gates again. A cell that keeps none reads its output alone.
inline bool again(const Problem& p) { return p.keeps_some() && spec(p.cell).keeps_slots; }

// Where one direction's parts lie in the reserve, or in a workspace that has slots only.
struct Kept {
  int64_t slots, c, hidden;  // elements from the start

  Kept(const Problem& p, int64_t rows, int64_t width, int64_t direction)
      : slots(direction * rows * width),
        c(slots + rows * cuda::slots_of(p.cell, p.training) * p.H),
        hidden(c + rows * p.H) {}
};

}  // namespace fusedrnn::ops

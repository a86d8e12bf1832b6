// What forward and backward on a CUDA device share: the state of torch they run under, views for
// its matrix products, and what they tell of a kernel that did not start.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/alias.h>
#include <ATen/ops/mm.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

#include "ops/check.h"
#include "ops/choice.h"

namespace fusedrnn::ops {

// While it lives, the input's device is current, and torch's operators are what they are named: no
// autograd, no autocast, products as exact as torch's switch for RNNs asks. Where that allows TF32,
// the switch for matrix products decides.
class Scope {
 public:
  explicit Scope(const Tensor& input);

  int device() const { return device_; }
  void* stream() const { return stream_; }
  // Torch's switch for RNNs asks for exact products.
  bool is_ieee() const { return ieee_.has_value(); }
  // Products must be exact although the switch for matrix products allows TF32.
  bool overrules_tf32() const { return ieee_ && matmul_tf32_; }

 private:
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::impl::ExcludeDispatchKeyGuard no_autocast_;
  c10::DeviceGuard guard_;
  std::optional<at::NoTF32Guard> ieee_;
  bool matmul_tf32_;
  int device_;
  void* stream_;
};

// The plan among kernels of ours.
cuda::Plan plan_of(cuda::Pass pass, const Call& call, const Scope& scope);
void check_started(int error, cuda::Pass pass, const Problem& problem, const cuda::Plan& plan);

// Problem::offsets on the input's device, without waiting for it; undefined unless packed.
Tensor device_offsets(const Call& call);

// A matrix that lies in `tensor` from an element on, its rows `ld` elements apart.
inline Tensor matrix(const Tensor& tensor, int64_t element, int64_t rows, int64_t columns,
                     int64_t ld) {
  return tensor.as_strided({rows, columns}, {ld, 1}, tensor.storage_offset() + element);
}

// out = a b, and out += a b.
inline void product(Tensor out, const Tensor& a, const Tensor& b) { at::mm_out(out, a, b); }
inline void add_product(Tensor out, const Tensor& a, const Tensor& b) {
  at::addmm_out(out, out, a, b);
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

// Where one direction's parts lie in the reserve, or in a workspace that has slots only.
struct Kept {
  int64_t slots, c, hidden;  // elements from the start

  Kept(const Problem& p, int64_t rows, int64_t width, int64_t direction)
      : slots(direction * rows * width),
        c(slots + rows * cuda::slots_of(p.cell, p.training) * p.H),
        hidden(c + rows * p.H) {}
};

}  // namespace fusedrnn::ops

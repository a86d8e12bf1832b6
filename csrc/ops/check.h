// What a layer's arguments must be, for every device: one set of checks, in torch.nn's words where
// it has some.
#pragma once

#include <vector>

#include "ops/layer.h"

namespace fusedrnn::ops {

// A layer's arguments once they are known to fit together; tensors here are contiguous.
struct Call {
  Cell cell;
  int64_t D, per_direction;
  Problem problem;               // of the forward direction
  std::vector<int64_t> offsets;  // empty unless packed
  Tensor input, hx, cx;
  std::vector<Tensor> weights;

  // Direction d's problem; points into this object.
  Problem direction(int64_t d) const;
  const Tensor& weight(int64_t direction, int64_t i) const {
    return weights[direction * per_direction + i];
  }
  // Of all steps together.
  int64_t rows() const { return offsets.empty() ? problem.T * problem.B : offsets.back(); }
};

// layer_backward's arguments likewise, and its results: made, not yet computed (but zero where the
// batch is empty). An undefined tensor is a gradient that was not given, or not asked for.
struct BackwardCall : Call {
  Tensor y, reserve, dy, dh_n, dc_n;
  Tensor dx, dhx, dcx;
  std::vector<Tensor> dweights;

  const Tensor* dweight(int64_t direction) const {
    return dweights.data() + direction * per_direction;
  }
  std::vector<Tensor> results() const;
};

// No tracer, transform or mode is watching, and the tensor is the memory that it seems to be.
bool is_plain(const Tensor& tensor);
void check_tensor(const char* name, const Tensor& tensor, at::IntArrayRef shape,
                  const char* symbols, const Tensor& input);
// Devices, and layouts. Apart from the rest because it has to come before a kernel is chosen, which
// is by both: a mix of meta and CPU tensors would be taken for a shape inference.
void check_devices(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                   at::TensorList weights);
enum class Weights { kAsInput, kBFloat16 };
// What holds of any tensors, complex or fake ones too: that they fit together in shape, dtype and
// device. Leaves the tensors of its result and the dtype empty; of packed rows B is read from
// batch_sizes or, where these hold no data, taken from the states.
Call fit(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
         const OptionalTensor& cx, at::TensorList weights, c10::string_view mode, bool has_biases,
         bool read_sizes = true, Weights type = Weights::kAsInput);
void fit_backward(const Call& call, const OptionalTensor& grad_output,
                  const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                  const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                  at::TensorList weights, const Tensor& output, const c10::List<bool>& needs);
Call check(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
           const OptionalTensor& cx, at::TensorList weights, c10::string_view mode, bool has_biases,
           bool train, Weights type = Weights::kAsInput);
BackwardCall check_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                            const OptionalTensor& grad_c_n, const Tensor& input,
                            const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                            const OptionalTensor& cx, at::TensorList weights, const Tensor& output,
                            const Tensor& reserve, c10::string_view mode, bool has_biases,
                            const c10::List<bool>& needs,
                            int64_t (*reserve_width)(const Problem& problem));

// The address of a tensor's element; null for one that is not there.
inline const void* read(const Tensor& tensor, int64_t element = 0) {
  if (!tensor.defined()) return nullptr;
  return static_cast<const char*>(tensor.const_data_ptr()) + element * tensor.element_size();
}
inline void* write(const Tensor& tensor, int64_t element = 0) {
  if (!tensor.defined()) return nullptr;
  return static_cast<char*>(tensor.data_ptr()) + element * tensor.element_size();
}

}  // namespace fusedrnn::ops

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
};

void check_tensor(const char* name, const Tensor& tensor, at::IntArrayRef shape,
                  const char* symbols, const Tensor& input);
// Apart from the rest because it has to come before a kernel is chosen, which is by device: a mix
// of meta and CPU tensors would be taken for a shape inference.
void check_devices(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                   at::TensorList weights);
Call check(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
           const OptionalTensor& cx, at::TensorList weights, c10::string_view mode, bool has_biases,
           bool train);

}  // namespace fusedrnn::ops

// Tensors of bfloat16 as float32, which the CPU kernels compute in, and back.
#pragma once

#include <ATen/ops/empty.h>

#include "ops/layer.h"

namespace fusedrnn::ops {

// bfloat16 as float32 and back. A call of Tensor::to takes 0.7 us, which counts where there is
// little to convert.
constexpr int64_t kLittle = 4096;

// Other tensors pass.
inline Tensor widened(const Tensor& tensor) {
  if (!tensor.defined() || tensor.scalar_type() != at::kBFloat16) return tensor;
  const int64_t n = tensor.numel();
  if (n > kLittle) return tensor.to(at::kFloat);
  Tensor wide = at::empty(tensor.sizes(), tensor.options().dtype(at::kFloat));
  const auto* from = static_cast<const uint16_t*>(tensor.const_data_ptr());
  auto* to = static_cast<uint32_t*>(wide.data_ptr());
  for (int64_t i = 0; i < n; ++i) to[i] = uint32_t(from[i]) << 16;
  return wide;
}
inline Tensor narrowed(const Tensor& tensor) {
  const int64_t n = tensor.numel();
  if (n > kLittle) return tensor.to(at::kBFloat16);
  Tensor narrow = at::empty(tensor.sizes(), tensor.options().dtype(at::kBFloat16));
  const auto* from = static_cast<const uint32_t*>(tensor.const_data_ptr());
  auto* to = static_cast<uint16_t*>(narrow.data_ptr());
  for (int64_t i = 0; i < n; ++i) {  // to nearest, ties to even; nan stays nan
    const uint32_t bits = from[i], rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
  return narrow;
}

}  // namespace fusedrnn::ops

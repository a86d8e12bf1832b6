// Tensors of bfloat16 as float32, which the CPU kernels compute in, and back; and whether they may
// multiply bfloat16.
#pragma once

#include <ATen/ops/empty.h>

#include <cstdlib>
#include <string_view>

#include "ops/layer.h"

namespace fusedrnn::ops {

// Not where FUSEDRNN_CPU_NARROW is 0. Read anew on every call, so that one process can compare.
inline bool may_multiply_bfloat16() {
  const char* const set = std::getenv("FUSEDRNN_CPU_NARROW");
  const std::string_view value(set ? set : "");
  TORCH_CHECK_VALUE(value.empty() || value == "0" || value == "1",
                    "fusedrnn: FUSEDRNN_CPU_NARROW must be 0 or 1, got ", set);
  return value != "0";
}

// bfloat16 as float32 and back. A call of Tensor::to takes 0.7 us, which counts where there is
// little to convert.
constexpr int64_t kLittle = 4096;

inline void widen(const void* from, int64_t n, void* to) {
  const auto* narrow = static_cast<const uint16_t*>(from);
  auto* wide = static_cast<uint32_t*>(to);
  for (int64_t i = 0; i < n; ++i) wide[i] = uint32_t(narrow[i]) << 16;
}
// To nearest, ties to even; nan stays nan.
inline void narrow(const void* from, int64_t n, void* to) {
  const auto* wide = static_cast<const uint32_t*>(from);
  auto* halves = static_cast<uint16_t*>(to);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = wide[i], rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    halves[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
}

// Other tensors pass.
inline Tensor widened(const Tensor& tensor) {
  if (!tensor.defined() || tensor.scalar_type() != at::kBFloat16) return tensor;
  const int64_t n = tensor.numel();
  if (n > kLittle) return tensor.to(at::kFloat);
  Tensor wide = at::empty(tensor.sizes(), tensor.options().dtype(at::kFloat));
  widen(tensor.const_data_ptr(), n, wide.mutable_data_ptr());
  return wide;
}
inline Tensor narrowed(const Tensor& tensor) {
  const int64_t n = tensor.numel();
  if (n > kLittle) return tensor.to(at::kBFloat16);
  Tensor low = at::empty(tensor.sizes(), tensor.options().dtype(at::kBFloat16));
  narrow(tensor.const_data_ptr(), n, low.mutable_data_ptr());
  return low;
}

}  // namespace fusedrnn::ops

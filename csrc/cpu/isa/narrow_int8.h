// int8 for the instruction set of this translation unit: rows of A as words, and what the sums are
// as float32. How words are multiplied, each source says.
#pragma once

#include "cpu/isa/narrow_tile.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// Sums of products of A's numbers, with kZero added to each, and W's.
struct Int8Sums {
  using Sums = Words;
  static FUSEDRNN_INLINE Vec<float> result(Sums sums, const NarrowProduct& p, int64_t row, int v,
                                           Vec<float> init) {
    constexpr int W = kLanes<float>;
    Words offset;
    __builtin_memcpy(&offset, p.w_offset + v * W, sizeof offset);
    const Words exact = sums - offset;
    const auto scale = Vec<float>(p.a_scale[row]) * Vec<float>::load(p.w_scale + v * W);
    return madd(Vec<float>(__builtin_convertvector(exact, Vec<float>::Type)), scale, init);
  }
};

// A row's greatest magnitude is 127. A row with an infinity or nan has the scale nan.
inline float scale_of(const float* from, int64_t n) {
  using V = Vec<float>;
  constexpr int W = kLanes<float>;
  V most(0.0f), faults(0.0f);
  for (int64_t i = 0; i < n; i += W) {
    const V x = V::load(from + i, int(n - i < W ? n - i : W));
    most = at_least(abs(x), most);
    faults = faults + x * V(0.0f);
  }
  float greatest = 0, fault = 0;
  for (int i = 0; i < W; ++i) {
    greatest = most.v[i] > greatest ? most.v[i] : greatest;
    fault += faults.v[i];
  }
  return greatest + fault;
}

// Adding and taking away this rounds a float to the nearest integer, ties to even.
constexpr float kRounds = 12582912.0f;  // 1.5 * 2^23

FUSEDRNN_INLINE void narrow_rows(const WideRows& rows) {
  using V = Vec<float>;
  constexpr int W = kLanes<float>;
  const int64_t words = words_of(DType::kInt8, rows.n);
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* from = rows.from + r * rows.stride;
    auto* to = reinterpret_cast<uint8_t*>(rows.to + r * rows.to_stride);
    const float greatest = scale_of(from, rows.n);
    // Of numbers this small the inverse is infinite: they are zero.
    const bool tiny = greatest < 1e-36f;
    const float inverse = tiny ? 0.0f : 127.0f / greatest;
    rows.scales[r] = tiny ? 0.0f : greatest / 127.0f;
    int64_t i = 0;
    for (; i < rows.n; i += W) {
      const int lanes = int(rows.n - i < W ? rows.n - i : W);
      const V x = V::load(from + i, lanes);
      V scaled = x * V(inverse);
      FUSEDRNN_KEEP(scaled.v);  // rounded by itself on machines with FMA too
      const Words bits = Words((scaled + V(kRounds + kZero)).v);  // the integer is in the low bits
      typedef uint8_t Bytes __attribute__((vector_size(W)));
      const Bytes bytes = __builtin_convertvector(bits, Bytes);
      if (lanes == W) {
        __builtin_memcpy(to + i, &bytes, W);
      } else {
        for (int l = 0; l < lanes; ++l) to[i + l] = bytes[l];
      }
    }
    for (i = rows.n; i < words * 4; ++i) to[i] = 0;
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

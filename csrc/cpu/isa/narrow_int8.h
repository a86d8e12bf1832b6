// What sums of int8 products are as float32. How they are multiplied, each source says.
#pragma once

#include "cpu/isa/narrow_tile.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

struct Scales {
  const float *of_a, *of_w;

  explicit Scales(const NarrowProduct& p) : of_a(p.a_scale), of_w(p.w_scale) {}
  // init and the sums of the numbers' products.
  FUSEDRNN_INLINE Vec<float> scaled(Words exact, int64_t row, int v, Vec<float> init) const {
    const auto scale = Vec<float>(of_a[row]) * Vec<float>::load(of_w + v * kLanes<float>);
    return madd(Vec<float>(__builtin_convertvector(exact, Vec<float>::Type)), scale, init);
  }
};

// Sums of products of A's numbers, with kZero added to each, and W's.
struct Int8Sums {
  using Sums = Words;
  struct Rest : Scales {
    const int32_t* offsets;
    explicit Rest(const NarrowProduct& p) : Scales(p), offsets(p.w_offset) {}
  };
  static FUSEDRNN_INLINE Vec<float> result(const Rest& rest, Sums sums, int64_t row, int v,
                                           Vec<float> init) {
    Words offset;
    __builtin_memcpy(&offset, rest.offsets + v * kLanes<float>, sizeof offset);
    return rest.scaled(sums - offset, row, v, init);
  }
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

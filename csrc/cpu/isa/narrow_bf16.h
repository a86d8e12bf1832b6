// Words of bfloat16 and their products by AVX512-BF16.
#pragma once

#include "cpu/isa/narrow_tile.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

typedef uint16_t Halves __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
typedef uint16_t HalfOfHalves __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES / 2)));

struct BFloat16Words {
  using Sums = Vec<float>::Type;
  static FUSEDRNN_INLINE Words factor(const uint32_t* a, int64_t k) { return splat(a[k]); }
  static FUSEDRNN_INLINE void add(Sums& sums, Words factor, Words w) {
#ifdef FUSEDRNN_BY_LANE
    sums = Sums(_mm512_dpbf16_ps(sums, factor, w));
#else
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(factor), "v"(w));
#endif
  }
  struct Rest {
    explicit Rest(const NarrowProduct&) {}
  };
  static FUSEDRNN_INLINE Vec<float> result(Rest, Sums sums, int64_t, int, Vec<float> init) {
    return Vec<float>(sums) + init;
  }
};

// To nearest, ties to even, by the instruction, which makes zeros of denormals; `low` is the lower
// half.
FUSEDRNN_INLINE Halves rounded(Vec<float> low, Vec<float> high) {
  return Halves(_mm512_cvtne2ps_pbh(__m512(high.v), __m512(low.v)));
}

inline void rounded_rows(const WideRows& rows) {
  using V = Vec<float>;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* from = rows.from + r * rows.stride;
    uint32_t* to = rows.to + r * rows.to_stride;
    int64_t i = 0;
    for (; i + 32 <= rows.n; i += 32) {
      const Halves both = rounded(V::load(from + i), V::load(from + i + 16));
      __builtin_memcpy(to + i / 2, &both, 64);
    }
    for (; i < rows.n; i += 16) {
      const int lanes = int(rows.n - i < 16 ? rows.n - i : 16), words = (lanes + 1) / 2;
      const auto half = HalfOfHalves(_mm512_cvtneps_pbh(__m512(V::load(from + i, lanes).v)));
      __builtin_memcpy(to + i / 2, &half, words * 4);
    }
  }
}

FUSEDRNN_INLINE Vec<float> part_of(const float* row, int64_t i, int lanes) {
  return row ? Vec<float>::load(row + i, lanes) : Vec<float>(0.0f);
}

inline void pair_rows(const float* low, const float* high, int64_t n, uint32_t* to) {
  using V = Vec<float>;
  alignas(64) static constexpr uint16_t kInTurn[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  Halves in_turn;
  __builtin_memcpy(&in_turn, kInTurn, 64);
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = int(n - i < 16 ? n - i : 16);
    const Halves both = rounded(part_of(low, i, lanes), part_of(high, i, lanes));
    const V words = V::Type(_mm512_permutexvar_epi16(__m512i(in_turn), __m512i(both)));
    words.store(reinterpret_cast<float*>(to + i), lanes);
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

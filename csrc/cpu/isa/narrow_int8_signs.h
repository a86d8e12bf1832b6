// int8 without an instruction for four products, by vpmaddubsw: numbers of A must be unsigned, and
// the sum of two products fit 16 bits, where it saturates. So A comes as magnitudes, which are at
// most 127, and its signs flip the bits of W: w ^ -1 is -w - 1. What the ones come to is the sum of
// the negative numbers' magnitudes, the same for all columns, and is added at the end.
#pragma once

#include "cpu/isa/narrow_int8_rows.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// A row of A: for each word the magnitudes of its numbers and their signs, 0 or -1; and at its end
// the sum of the negative ones' magnitudes.
struct Signs {
  using Sums = Words;
  struct Factor {
    Words magnitudes, signs;
  };
  static FUSEDRNN_INLINE Factor factor(const uint32_t* a, int64_t k) {
    return {splat(a[2 * k]), splat(a[2 * k + 1])};
  }
  static FUSEDRNN_INLINE void add(Sums& sums, const Factor& factor, Words w) {
    w ^= factor.signs;
#if FUSEDRNN_AVX512
    const auto pairs = _mm512_maddubs_epi16(__m512i(factor.magnitudes), __m512i(w));
    sums += Words(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#else
    const auto pairs = _mm256_maddubs_epi16(__m256i(factor.magnitudes), __m256i(w));
    sums += Words(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
  struct Rest : Scales {
    const uint32_t* sum;
    int64_t a_row;
    explicit Rest(const NarrowProduct& p) : Scales(p), sum(p.a + 2 * p.depth), a_row(p.a_row) {}
  };
  static FUSEDRNN_INLINE Vec<float> result(const Rest& rest, Sums sums, int64_t row, int v,
                                           Vec<float> init) {
    return rest.scaled(sums + splat(rest.sum[row * rest.a_row]), row, v, init);
  }
};

// The sum of numbers that are not negative.
FUSEDRNN_INLINE uint32_t sum_of(Bytes numbers) {
#if FUSEDRNN_AVX512
  const auto sums = _mm512_sad_epu8(__m512i(numbers), _mm512_setzero_si512());
#else
  const auto sums = _mm256_sad_epu8(__m256i(numbers), _mm256_setzero_si256());
#endif
  uint32_t sum = 0;
  for (int i = 0; i < kLanes<double>; ++i) sum += uint32_t(sums[i]);
  return sum;
}

inline void narrow_rows_to_signs(const WideRows& rows) {
  using V = Vec<float>;
  constexpr int W = kLanes<float>;
  constexpr auto lanes = std::make_index_sequence<W>();
  const int64_t end = 2 * words_of(DType::kInt8, rows.n);
  for (int64_t r = 0; r < rows.rows; ++r) rows.to[r * rows.to_stride + end] = 0;
  round_rows(rows,
             [&](int64_t r, int64_t k, Bytes bytes, int count) __attribute__((always_inline)) {
               uint32_t* const row = rows.to + r * rows.to_stride;
               const auto signs = Bytes(bytes < 0);
               const auto magnitudes = Bytes((bytes ^ signs) - signs);
               row[end] += sum_of(magnitudes & signs);
               const auto low = V::Type(magnitudes), high = V::Type(signs);
               auto* to = reinterpret_cast<float*>(row + 2 * k);
               const int more = 2 * count - W;
               V(interleave<float, false>(low, high, lanes)).store(to, more < 0 ? 2 * count : W);
               if (more > 0) V(interleave<float, true>(low, high, lanes)).store(to + W, more);
             });
}

}  // namespace

const Narrow& table() {
  static const Narrow kTable = [] {
    Narrow made = table<Signs>(FUSEDRNN_NARROW_NAME, DType::kInt8, narrow_rows_to_signs);
    made.signs = true;
    return made;
  }();
  return kTable;
}

}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

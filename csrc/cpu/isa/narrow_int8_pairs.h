// int8 without an instruction for four products: numbers of 16 bits are multiplied in pairs, the
// even ones and the odd ones of a word. That is exact. vpmaddubsw, which takes int8 as it is,
// saturates from two products of 128 * 128 on.
#pragma once

#include "cpu/isa/narrow_int8.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

struct Pairs : Int8Sums {
  struct Factor {
    Words even, odd;  // [two numbers of 16 bits]
  };
  static FUSEDRNN_INLINE Factor factor(uint32_t word) {
    return {int32_t(word & 0x00ff00ff) - Words{}, int32_t(word >> 8 & 0x00ff00ff) - Words{}};
  }
  static FUSEDRNN_INLINE void add(Sums& sums, const Factor& factor, Words w) {
    typedef int16_t Halves __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
    const Words odd = Words(Halves(w) >> 8), even = Words(Halves(Halves(w) << 8) >> 8);
    sums += pair_sums(factor.even, even) + pair_sums(factor.odd, odd);
  }
  // The sums of the products of both halves of a word.
  static FUSEDRNN_INLINE Words pair_sums(Words a, Words b) {
#if FUSEDRNN_AVX512
    return Words(_mm512_madd_epi16(__m512i(a), __m512i(b)));
#elif FUSEDRNN_AVX2
    return Words(_mm256_madd_epi16(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
    return Words(_mm_madd_epi16(__m128i(a), __m128i(b)));
#else
    return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

}  // namespace

const Narrow& table() {
  static const Narrow kTable = table<Pairs>(FUSEDRNN_NARROW_NAME, DType::kInt8, narrow_rows);
  return kTable;
}

}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

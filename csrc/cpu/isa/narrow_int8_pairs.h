// int8 for vectors of 16 bytes: numbers of 16 bits are multiplied in pairs, the even ones and the
// odd ones of a word. SSE2 multiplies none of 8 bits.
#pragma once

#include "cpu/isa/narrow_int8_rows.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

struct Pairs : Int8Sums {
  struct Factor {
    Words even, odd;  // [two numbers of 16 bits]
  };
  static FUSEDRNN_INLINE Factor factor(const uint32_t* a, int64_t k) {
    return {splat(a[k] & 0x00ff00ff), splat(a[k] >> 8 & 0x00ff00ff)};
  }
  static FUSEDRNN_INLINE void add(Sums& sums, const Factor& factor, Words w) {
    typedef int16_t Halves __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
    const Words odd = Words(Halves(w) >> 8), even = Words(Halves(Halves(w) << 8) >> 8);
    sums += pair_sums(factor.even, even) + pair_sums(factor.odd, odd);
  }
  // The sums of the products of both halves of a word.
  static FUSEDRNN_INLINE Words pair_sums(Words a, Words b) {
#if defined(__SSE2__)
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

// int8 by the instruction that adds four products of a word, FUSEDRNN_DPBUSD(sums, a, w): numbers
// of A are unsigned, those of W signed, and nothing saturates.
#pragma once

#include "cpu/isa/narrow_int8_rows.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

struct Quads : Int8Sums {
  static FUSEDRNN_INLINE Words factor(const uint32_t* a, int64_t k) { return splat(a[k]); }
  static FUSEDRNN_INLINE void add(Sums& sums, Words factor, Words w) {
    sums = FUSEDRNN_DPBUSD(sums, factor, w);
  }
};

}  // namespace

const Narrow& table() {
  static const Narrow kTable = table<Quads>(FUSEDRNN_NARROW_NAME, DType::kInt8, narrow_rows);
  return kTable;
}

}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

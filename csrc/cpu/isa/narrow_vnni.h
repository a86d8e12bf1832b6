// int8 by the instruction that adds four products of a word, FUSEDRNN_DPBUSD(sums, a, w): numbers
// of A are unsigned, those of W signed, and nothing saturates.
#pragma once

#include "cpu/isa/narrow_int8.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

struct Quads : Int8Sums {
  static FUSEDRNN_INLINE Words factor(uint32_t word) { return int32_t(word) - Words{}; }
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

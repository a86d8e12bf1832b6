// What tiles hold: words of bfloat16, or of int8.
#pragma once

#include "cpu/isa/narrow_amx.h"
#include "cpu/isa/narrow_int8.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

template <class Registers>
struct TilesOfBFloat16 {
  using Tiles = Registers;
  using Sums = Vec<float>::Type;
  static constexpr bool kExact = false;
  template <int kC, int kA, int kB>
  static FUSEDRNN_INLINE void add() {
    Tiles::template add_bfloat16<kC, kA, kB>();
  }
  struct Rest {
    explicit Rest(const NarrowProduct&) {}
  };
  static FUSEDRNN_INLINE Vec<float> result(Rest, Sums sums, int64_t, int, Vec<float> init) {
    return Vec<float>(sums) + init;
  }
};

template <class Registers>
struct TilesOfInt8 : Int8Sums {
  using Tiles = Registers;
  static constexpr bool kExact = true;
  template <int kC, int kA, int kB>
  static FUSEDRNN_INLINE void add() {
    Tiles::template add_int8<kC, kA, kB>();
  }
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

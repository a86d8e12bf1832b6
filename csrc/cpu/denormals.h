// Numbers smaller than every normal one, and what they cost.
#pragma once

#include "cpu/simd.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// While it lives, results smaller than every normal number are 0 on this thread, or are not.
// Gradients that vanish over the steps pass through such numbers, and an instruction on them can
// take a hundred cycles (an Intel Xeon, LSTM T200 B64 H128 L2 with a gradient for the last step
// only: 1,420 -> 142 ms). What forward made has to be made again as it was, so without.
class FlushDenormals {
#if defined(__x86_64__)
 public:
  explicit FlushDenormals(bool flush = true) : before_(_mm_getcsr()) {
    _mm_setcsr(flush ? before_ | kFlushToZero : before_ & ~kFlushToZero);
  }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  // Operands that small stay what they are: relu's slope is 1 above 0, however little above.
  static constexpr unsigned kFlushToZero = 0x8000;
  const unsigned before_;
#else
 public:
  explicit FlushDenormals(bool = true) {}
#endif
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

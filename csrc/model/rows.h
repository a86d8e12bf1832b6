// The rows of a sequence's steps: where they lie, how many there are, and whose h each one reads.
// The one answer to these for every kernel, on the host and on a device.
//
// Rows of all steps lie end to end. Without lengths every step has B. Packed, step t has as many as
// there are sequences longer than t, which come longest first: batch row b is row b of every step
// that it takes part in, and `offsets[t]` is where step t begins.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FUSEDRNN_ROWS __host__ __device__ __forceinline__
#else
// Inlined always: otherwise each variant of the CPU kernels leaves a copy for its own machine, and
// the linker keeps any one of them.
#define FUSEDRNN_ROWS [[gnu::always_inline]] inline
#endif

namespace fusedrnn {

struct Rows {
  int64_t T, B;
  const int64_t* offsets;  // T+1 of them; null: every step has B rows
  bool reverse;            // the last step comes first

  FUSEDRNN_ROWS int64_t offset(int64_t t) const { return offsets ? offsets[t] : t * B; }
  FUSEDRNN_ROWS int64_t active(int64_t t) const { return offset(t + 1) - offset(t); }
  FUSEDRNN_ROWS int64_t total() const { return offset(T); }

  // The step that comes before t in this direction; -1 or T where t is the first.
  FUSEDRNN_ROWS int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  FUSEDRNN_ROWS bool is_first(int64_t t) const { return t == (reverse ? T - 1 : 0); }
  // Rows [0, carried(t)) of step t go on from the same rows of the step before; the others begin
  // their sequence here, from h0: going forward all of them at once, in reverse each at its end.
  FUSEDRNN_ROWS int64_t carried(int64_t t) const {
    if (is_first(t)) return 0;
    const int64_t there = active(before(t)), here = active(t);
    return there < here ? there : here;
  }
};

}  // namespace fusedrnn

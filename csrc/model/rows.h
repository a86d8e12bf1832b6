// The rows of a sequence's steps: where they lie, how many there are, and whose h each one reads.
// The one answer to these for every kernel, on the host and on a device: lengths of another kind,
// or states that restart within a sequence, would change this file and no kernel.
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
  // How many of the batch rows [begin, end) take part in step t: the first so many.
  FUSEDRNN_ROWS int64_t active(int64_t t, int64_t begin, int64_t end) const {
    const int64_t here = active(t), last = here < end ? here : end;
    return last > begin ? last - begin : 0;
  }
  // The last step that batch row b takes part in, which is not after step `t`. Rows come longest
  // first: who asks for one after the other hands the last answer in as `t`.
  FUSEDRNN_ROWS int64_t last_step(int64_t b, int64_t t) const {
    while (t > 0 && active(t) <= b) --t;
    return t;
  }
  // Where the final state of batch row b lies, whose last step is given: in reverse it is step 0's.
  FUSEDRNN_ROWS int64_t final_row(int64_t b, int64_t last) const {
    return offset(reverse ? 0 : last) + b;
  }

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

  // Rows side by side whose predecessors lie side by side too: `carried`, from row `from` of y (and
  // of whatever else is kept for each of its rows) on, or else from row `from` of h0 and c0 on.
  struct Run {
    int64_t begin, end;
    int64_t from;
    bool carried;
    FUSEDRNN_ROWS int64_t size() const { return end - begin; }
  };
  struct Runs {
    Run item[2];
    int count;
    FUSEDRNN_ROWS const Run* begin() const { return item; }
    FUSEDRNN_ROWS const Run* end() const { return item + count; }
  };
  // What the batch rows [begin, end) of step t read; those that take no part in it are in no run.
  FUSEDRNN_ROWS Runs previous(int64_t t, int64_t begin, int64_t end) const {
    const int64_t last = begin + active(t, begin, end);
    int64_t middle = carried(t);
    middle = middle < begin ? begin : middle > last ? last : middle;
    Runs runs{};
    if (middle > begin) runs.item[runs.count++] = {begin, middle, offset(before(t)) + begin, true};
    if (last > middle) runs.item[runs.count++] = {middle, last, middle, false};
    return runs;
  }
  // The same of all rows of the steps [begin, end), counted over all steps: each(run) for as few
  // runs as there are, as rows of equal steps go on through all of them. For the host.
  template <class Each>
  [[gnu::always_inline]] inline void each_previous(int64_t begin, int64_t end,
                                                   const Each& each) const {
    for (int64_t t = begin; t < end;) {
      if (!offsets && !is_first(t)) {
        const int64_t last = reverse && end == T ? T - 1 : end;
        each(Run{t * B, last * B, before(t) * B, true});
        t = last;
        continue;
      }
      for (const Run& run : previous(t, 0, B)) {
        each(Run{offset(t) + run.begin, offset(t) + run.end, run.from, run.carried});
      }
      ++t;
    }
  }
};

}  // namespace fusedrnn

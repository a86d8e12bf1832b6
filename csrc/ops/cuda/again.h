// Gates that forward did not keep, made again for backward a piece of a sequence at a time.
#pragma once

#include "ops/cuda/recurrence.h"

namespace fusedrnn::ops {

class GatesAgain {
 public:
  // `forward` is the call whose gates these are; references stay in use.
  GatesAgain(const BackwardCall& call, const Call& forward, const Pieces& pieces);

  // Rows that a piece has at the most: as many as the first steps.
  int64_t most_rows() const { return most_rows_; }
  // Runs the steps [begin, end) forward once more, as in training. The result is what that left,
  // and c of the step before too; valid until the next piece is made.
  const Part& make(int64_t begin, int64_t end, const Scope& scope);

 private:
  void place(int64_t d, int64_t begin, int64_t end);
  void begin_states(int64_t d, int64_t begin);

  const BackwardCall& call_;
  const Call& forward_;
  const Pieces& pieces_;
  int64_t most_rows_, rows_;  // rows_: with those beside, which a kernel may read
  Tensor slots_, c_, hidden_, y_;
  Part part_{};
};

}  // namespace fusedrnn::ops

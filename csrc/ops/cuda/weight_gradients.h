// What the gradients of all slots mean for inputs, weights and biases, piece by piece of a sequence
// as the recurrence leaves them.
#pragma once

#include "ops/cuda/recurrence.h"

namespace fusedrnn::ops {

// Gradients on their way from the outputs to the weights; buffers for all directions. They have
// rows of all steps, or of some of them at a time.
struct Inner {
  Tensor offsets;                        // [T+1]        packed
  Tensor dslots;                         // [D, N, S*H]
  Tensor projected;                      // [D, N, P]    of h after the projection, projected
  int64_t first[2] = {}, count[2] = {};  // which rows of all there are

  Region of_slots(int64_t d) const { return place(dslots, d); }
  Region of_projected(int64_t d) const { return place(projected, d); }

 private:
  Region place(const Tensor& all, int64_t d) const {
    const int64_t ld = all.stride(1);
    return {all, d * all.stride(0) - first[d] * ld, ld};
  }
};

class WeightGradients {
 public:
  // References stay in use.
  WeightGradients(const BackwardCall& call, const Inner& inner, const Scope& scope);

  // Adds the steps [begin, end), counted as backward takes them, that follow those added before.
  // Sums go by this order, so that they come out the same every time.
  void steps(int64_t begin, int64_t end, const Products& product);
  // What is a single sum or product over the rows that there are, when all their steps were added.
  // Rows of other steps may follow. On the current stream.
  void finish(const Part& left, const Products& product);

 private:
  void inputs(int64_t d, int64_t begin, int64_t end, const Products& product);
  void recurrent(int64_t d, int64_t begin, int64_t end, const Products& product);
  void biases(int64_t d);

  // Time steps that a direction takes as [begin, end).
  struct Times {
    int64_t begin, end;
  };
  Times times(int64_t d, int64_t begin, int64_t end) const {
    const int64_t T = call_.problem.T;
    return d == 0 ? Times{T - end, T - begin} : Times{begin, end};
  }
  // Of rows of a direction: what reaches x.
  Matrix of_x(int64_t d, const RowSpan& rows) const;

  const BackwardCall& call_;
  const Inner& inner_;
  Tensor previous_h_[2];   // [N, P]  packed: h that each row was computed from
  bool started_[2] = {};   // dW_hh holds a sum
  bool finished_ = false;  // of some rows
};

}  // namespace fusedrnn::ops

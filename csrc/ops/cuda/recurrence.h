// The recurrence forward over some steps of a layer: the way both passes take, backward where it
// makes gates again that were not kept.
#pragma once

#include "ops/cuda/glue.h"

namespace fusedrnn::ops {

// One direction's rows of something. They are counted over the whole sequence, while memory may
// hold those of a few steps: row 0 is then only where it would be.
struct Region {
  Tensor memory;  // undefined: not wanted
  int64_t element = 0, ld = 0;

  int64_t element_of(int64_t row) const { return element + row * ld; }
  void* at(int64_t row) const { return mutable_address(memory, element_of(row)); }
  Tensor rows(int64_t first, int64_t count, int64_t columns) const {
    return view(memory, element_of(first), count, columns, ld);
  }
};

// Steps past either end of some steps that a kernel may read, only to throw away what it reads.
constexpr int64_t kAhead = 4;

// The steps [begin, end), counted as each direction takes them.
struct Part {
  int64_t begin, end;
  Tensor h0, c0;    // [D, B, *] at `begin`; undefined: zeros
  Tensor h_n, c_n;  // at `end`; they may be h0 and c0
  Region slots[2], y[2];
  Region c[2];       // of all directions or none; rows equally far apart
  Region hidden[2];  // h before the projection; undefined: not wanted
};

// Rows of the steps [begin, end), counted as direction d takes them.
RowSpan rows_of(const Call& call, int64_t d, int64_t begin, int64_t end);

// x W_ih' + b_ih into the part's slots.
void project_input(const Call& call, const Part& part, const Products& product);
// Everything but that, by a persistent kernel. Returns the launch's error.
int launch(const Call& call, const Scope& scope, const cuda::Plan& plan, const Part& part);
// The same, a step at a time.
void step_through(const Call& call, const Scope& scope, const cuda::Plan& plan, const Part& part);
// All of it, by whichever kernel the plan names and the device starts.
void run_part(const Call& call, const Scope& scope, const Part& part);

// Where gates are not kept: pieces of `every` steps, which each direction counts as it takes them,
// and c of the rows that go on from one to the next, [D, kept_rows, H].
class Pieces {
 public:
  // Of a call that is filled up, which stays in use.
  explicit Pieces(const Call& call);

  // The call as its kernels see it. Packed steps are filled up with steps without rows to a whole
  // number of pieces, so that both directions have their borders at the same time steps: no more
  // rows cross these than the reserve has room for.
  static Call filled_up(const Call& call);

  int64_t every() const { return every_; }
  // How many rows direction d goes on with after `end` steps, and where in the reserve they begin.
  RowSpan crossing(int64_t d, int64_t end) const;

 private:
  const Call& call_;
  int64_t every_;
  std::vector<int64_t> first_[2];  // by border
};

}  // namespace fusedrnn::ops

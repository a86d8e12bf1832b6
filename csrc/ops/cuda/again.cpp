// See again.h.
//
// y of the piece is made again too, apart from the output: products of other sizes may round
// otherwise, and the output is the caller's. h before a piece is read from the output.
#include "ops/cuda/again.h"

#include <ATen/ops/empty.h>

namespace fusedrnn::ops {

GatesAgain::GatesAgain(const BackwardCall& call, const Call& forward, const Pieces& pieces)
    : call_(call),
      forward_(forward),
      pieces_(pieces),
      most_rows_(call.direction(0).rows().offset(pieces.every())),
      rows_(most_rows_ + 2 * kAhead * call.problem.B) {
  const Problem& p = call.problem;
  const int64_t D = call.D;
  const auto buffer = [&](int64_t rows, int64_t columns) {
    return at::empty({D, rows, columns}, call.input.options());
  };
  const bool has_c = spec(p.cell).has_c;
  slots_ = buffer(rows_, cuda::slots_of(p.cell, true) * p.H);
  if (has_c) c_ = buffer(rows_, p.H);
  if (p.projected) hidden_ = buffer(most_rows_, p.H);
  y_ = buffer(most_rows_, p.P);
  part_.h0 = buffer(p.B, p.P);
  part_.h_n = buffer(p.B, p.P);
  if (has_c) part_.c0 = buffer(p.B, p.H);
  if (has_c) part_.c_n = buffer(p.B, p.H);
}

void GatesAgain::place(int64_t d, int64_t begin, int64_t end) {
  const int64_t first = rows_of(forward_, d, begin, end).first, ahead = kAhead * call_.problem.B;
  const auto at = [&](const Tensor& all, int64_t beside) {
    if (!all.defined()) return Region{};
    const int64_t ld = all.stride(1);
    return Region{all, d * all.stride(0) + (beside - first) * ld, ld};
  };
  part_.slots[d] = at(slots_, ahead);
  part_.c[d] = at(c_, ahead);
  part_.hidden[d] = at(hidden_, 0);
  part_.y[d] = at(y_, 0);
}

// Rows that go on from the step before have their states there, the others begin in this piece.
void GatesAgain::begin_states(int64_t d, int64_t begin) {
  const Problem p = call_.direction(d);
  const RowSpan kept = begin > 0 ? pieces_.crossing(d, begin) : RowSpan{0, 0};
  const int64_t before = begin > 0 ? rows_of(forward_, d, begin - 1, begin).first : 0;
  const auto fill = [&](const Tensor& all, const Tensor& given, const auto& rows_before) {
    const Tensor state = all.select(0, d);
    if (kept.count > 0) state.narrow(0, 0, kept.count).copy_(rows_before());
    if (kept.count == p.B) return;
    Tensor rest = state.narrow(0, kept.count, p.B - kept.count);
    given.defined() ? rest.copy_(given.select(0, d).narrow(0, kept.count, p.B - kept.count))
                    : rest.zero_();
  };
  const int64_t ldy = call_.D * p.P;
  fill(part_.h0, call_.hx,
       [&] { return view(call_.y, before * ldy + d * p.P, kept.count, p.P, ldy); });
  if (!c_.defined()) return;
  fill(part_.c0, call_.cx, [&] {
    const Tensor c = call_.reserve.select(0, d).narrow(0, kept.first, kept.count);
    part_.c[d].rows(before, kept.count, p.H).copy_(c);
    return c;
  });
}

const Part& GatesAgain::make(int64_t begin, int64_t end, const Scope& scope) {
  part_.begin = begin;
  part_.end = end;
  for (int64_t d = 0; d < call_.D; ++d) {
    place(d, begin, end);
    begin_states(d, begin);
  }
  run_part(forward_, scope, part_);
  return part_;
}

}  // namespace fusedrnn::ops

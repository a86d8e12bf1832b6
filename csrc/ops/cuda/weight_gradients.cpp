// See weight_gradients.h.
//
// dW_ih and dW_hh are two products, although of an LSTM they could be one over [x | h_prev]. That
// one would read dslots (4H columns) once, not twice, and save 4H of traffic a row; but x and
// h_prev have to be copied side by side first, which is 2 (I + H) a row, all that is saved where
// I = H. A packed batch copies h_prev in any case, so there 2I stands against 4H: at N = 6400 rows
// and I = H = 128, 6.5 of 13 MB, less what it takes to split the result into two gradients that
// are contiguous: an estimated 1 us of some 200. GRU's x and h have different columns, and an Elman
// cell's 2 (I + H) stands against H. So it never pays enough for a path of its own.
#include "ops/cuda/weight_gradients.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

namespace fusedrnn::ops {
namespace {

// Calls run(from, to, count) where the gates [to, to + count) of h W_hh' lie side by side among a
// row's slots, from slot `from` on. GRU's slots are r, z, n, h_n: its r and z are one run, h_n is
// another. Of a cell that keeps nothing apart all gates are one run.
template <class Run>
void each_run_of_recurrent(Cell cell, const Run& run) {
  const int G = int(gates_of(cell));
  for (int gate = 0, end = 0; gate < G; gate = end) {
    const int from = cuda::place_of_recurrent(cell, gate);
    for (end = gate + 1; end < G; ++end) {
      if (cuda::place_of_recurrent(cell, end) != from + end - gate) break;
    }
    run(from, gate, end - gate);
  }
}

}  // namespace

WeightGradients::WeightGradients(const BackwardCall& call, const Inner& inner, const Scope& scope)
    : call_(call), inner_(inner) {
  if (!inner.offsets.defined()) return;
  // Before the recurrence, which it does not depend on: only y and h0 go into it.
  const Problem& p = call.problem;
  cuda::Plan plan{};
  plan.kernel = cuda::Kernel::kStepwise;
  plan.tile = -1;
  for (int64_t d = 0; d < call.D; ++d) {
    if (!call.dweights_of(d).w_hh->defined()) continue;
    previous_h_[d] = at::empty({call.rows(), p.P}, call.input.options());
    cuda::PreviousH a{};
    a.problem = call.direction(d);
    a.offsets = static_cast<const int64_t*>(address(inner.offsets));
    a.h0 = address(call.hx, d * p.B * p.P);
    a.y = address(call.y, d * p.P);
    a.ldy = call.D * p.P;
    a.h = mutable_address(previous_h_[d]);
    check_started(cuda::previous_h(a, scope.stream()), cuda::Pass::kBackward, p, plan);
  }
}

Matrix WeightGradients::of_x(int64_t d, const RowSpan& rows) const {
  const Region dslots = inner_.of_slots(d);
  return operand(dslots.memory, dslots.element_of(rows.first), rows.count,
                 gates_of(call_.problem.cell) * call_.problem.H, dslots.ld);
}

void WeightGradients::steps(int64_t begin, int64_t end, const Products& product) {
  for (int64_t d = 0; d < call_.D; ++d) {
    inputs(d, begin, end, product);
    if (call_.dweights_of(d).w_hh->defined()) recurrent(d, begin, end, product);
  }
}

void WeightGradients::inputs(int64_t d, int64_t begin, int64_t end, const Products& product) {
  const Problem& p = call_.problem;
  const Problem own = call_.direction(d);
  const Times of = times(d, begin, end);
  if (call_.dx.defined()) {
    // Two directions come to a step from either side: who comes second, adds. Direction 0 comes
    // first to what is new to both.
    const auto part = [&](int64_t from, int64_t to, bool second) {
      if (from >= to) return;
      const RowSpan rows = rows_of_times(own, from, to);
      if (rows.count == 0) return;
      const Matrix dx = target(call_.dx, rows.first * p.I, rows.count, p.I, p.I);
      const Matrix w_ih = operand(*call_.weights_of(d).w_ih);
      second ? product.add(dx, of_x(d, rows), w_ih) : product.set(dx, of_x(d, rows), w_ih);
    };
    if (call_.D == 1) {
      part(of.begin, of.end, false);
    } else if (d == 0) {  // direction 1 has been at times [0, begin)
      part(of.begin, std::min(of.end, begin), true);
      part(std::max(of.begin, begin), of.end, false);
    } else {  // direction 0 has been at times [T - end, T)
      part(of.begin, std::min(of.end, p.T - end), false);
      part(std::max(of.begin, p.T - end), of.end, true);
    }
  }
  if (const Tensor& dw = *call_.dweights_of(d).w_ih; dw.defined()) {
    const RowSpan rows = rows_of_times(own, of.begin, of.end);
    const Matrix from = of_x(d, rows).t();
    const Matrix x = operand(call_.input, rows.first * p.I, rows.count, p.I, p.I);
    begin > 0 ? product.add(target(dw), from, x) : product.set(target(dw), from, x);
  }
}

// dW_hh = dslots' h_prev. Of rows that are not packed, h_prev is y one step before, or h0.
void WeightGradients::recurrent(int64_t d, int64_t begin, int64_t end, const Products& product) {
  const Problem p = call_.direction(d);
  const Times of = times(d, begin, end);
  const Matrix dw = target(*call_.dweights_of(d).w_hh);
  const int64_t H = p.H, S = inner_.dslots.stride(1) / H;
  const auto sum = [&](const RowSpan& rows, const Matrix& h) {
    const Region dslots = inner_.of_slots(d);
    const Matrix all =
        operand(dslots.memory, dslots.element_of(rows.first), rows.count, S * H, S * H);
    const auto gates = [&](int64_t from, int64_t to, int64_t count) {
      const Matrix part = dw.rows_at(to * H, count * H);
      const Matrix of_h = all.columns_at(from * H, count * H).t();
      started_[d] ? product.add(part, of_h, h) : product.set(part, of_h, h);
    };
    each_run_of_recurrent(p.cell, gates);
    started_[d] = true;
  };
  if (previous_h_[d].defined()) {
    const RowSpan rows = rows_of_times(p, of.begin, of.end);
    sum(rows, operand(previous_h_[d]).rows_at(rows.first, rows.count));
    return;
  }
  const int64_t first = p.reverse ? p.T - 1 : 0;  // the time step that h0 goes into
  const bool has_first = of.begin <= first && first < of.end;
  const RowSpan later =
      rows_of_times(p, of.begin + (has_first && !p.reverse), of.end - (has_first && p.reverse));
  if (later.count > 0) {
    const int64_t ld = call_.D * p.P, before = later.first + (p.reverse ? p.B : -p.B);
    sum(later, operand(call_.y, before * ld + d * p.P, later.count, p.P, ld));
  }
  if (has_first && call_.hx.defined()) {
    sum(rows_of_times(p, first, first + 1), operand(call_.hx, d * p.B * p.P, p.B, p.P, p.P));
  }
}

void WeightGradients::finish(const Part& left, const Products& product) {
  const Problem& p = call_.problem;
  for (int64_t d = 0; d < call_.D; ++d) {
    const DirectionWeights dw = call_.dweights_of(d);
    if (dw.w_hh->defined() && !started_[d]) dw.w_hh->zero_();
    if (call_.has_biases) biases(d);
    if (dw.w_hr && dw.w_hr->defined()) {
      const int64_t first = inner_.first[d], count = inner_.count[d];
      const Region of_h = inner_.of_projected(d), &hidden = left.hidden[d];
      const Matrix slopes = operand(of_h.memory, of_h.element_of(first), count, p.P, p.P).t();
      const Matrix from = operand(hidden.memory, hidden.element_of(first), count, p.H, p.H);
      finished_ ? product.add(target(*dw.w_hr), slopes, from)
                : product.set(target(*dw.w_hr), slopes, from);
    }
  }
  finished_ = true;
}

// x reaches the first G slots, h those that its product adds to.
void WeightGradients::biases(int64_t d) {
  Tensor db_ih = *call_.dweights_of(d).b_ih, db_hh = *call_.dweights_of(d).b_hh;
  if (!db_ih.defined() && !db_hh.defined()) return;
  const Cell cell = call_.problem.cell;
  const Tensor dslots = inner_.dslots.select(0, d).narrow(0, 0, inner_.count[d]);
  const int64_t H = call_.problem.H, G = gates_of(cell);
  if (spec(cell).slots == G && !finished_) {  // the same ones
    Tensor sum = db_ih.defined() ? db_ih : db_hh;
    at::sum_out(sum, dslots, {0});
    if (db_ih.defined() && db_hh.defined()) db_hh.copy_(db_ih);
    return;
  }
  const Tensor sum = at::sum(dslots, {0});
  const auto put = [&](Tensor to, const Tensor& part) {
    finished_ ? to.add_(part) : to.copy_(part);
  };
  if (db_ih.defined()) put(db_ih, sum.narrow(0, 0, G * H));
  if (!db_hh.defined()) return;
  each_run_of_recurrent(cell, [&](int64_t from, int64_t to, int64_t count) {
    put(db_hh.narrow(0, to * H, count * H), sum.narrow(0, from * H, count * H));
  });
}

}  // namespace fusedrnn::ops

// See recurrence.h.
#include "ops/cuda/recurrence.h"

#include <ATen/ops/empty.h>

#include "ops/cuda/offsets.h"
#include "ops/cuda/trust.h"

namespace fusedrnn::ops {

RowSpan rows_of(const Call& call, int64_t d, int64_t begin, int64_t end) {
  const Problem p = call.direction(d);
  return p.reverse ? rows_of_times(p, p.T - end, p.T - begin) : rows_of_times(p, begin, end);
}

void project_input(const Call& call, const Part& part, const Products& product) {
  const Problem& p = call.problem;
  const int64_t columns = gates_of(p.cell) * p.H;
  for (int64_t d = 0; d < call.D; ++d) {
    const RowSpan rows = rows_of(call, d, part.begin, part.end);
    const Region& to = part.slots[d];
    product.set(target(to.memory, to.element_of(rows.first), rows.count, columns, to.ld),
                operand(call.input, rows.first * p.I, rows.count, p.I, p.I),
                operand(*call.weights_of(d).w_ih).t(), address(call.weights_of(d).b_ih));
  }
}

int launch(const Call& call, const Scope& scope, const cuda::Plan& plan, const Part& part) {
  const Problem& p = call.problem;
  const Tensor offsets = device_offsets(call, scope.current());
  const bool has_c = spec(p.cell).has_c;
  cuda::Forward a{};
  a.problem = call.direction(0);
  a.directions = int(call.D);
  a.offsets = static_cast<const int64_t*>(address(offsets));
  a.begin = part.begin;
  a.end = part.end;
  a.ldy = part.y[0].ld;
  a.ldc = part.c[0].ld;
  for (int64_t d = 0; d < call.D; ++d) {
    cuda::ForwardDirection& to = a.direction[d];
    to.slots = part.slots[d].at(0);
    to.w_hh = address(call.weights_of(d).w_hh);
    to.b_hh = address(call.weights_of(d).b_hh);
    to.y = part.y[d].at(0);
    to.h_n = mutable_address(part.h_n, d * p.B * p.P);
    to.h0 = address(part.h0, d * p.B * p.P);
    if (has_c) {
      to.c = part.c[d].at(0);
      to.c_n = mutable_address(part.c_n, d * p.B * p.H);
      to.c0 = address(part.c0, d * p.B * p.H);
    }
  }
  return cuda::forward(a, plan, scope.stream());
}

namespace {

// Sets one direction's state in a buffer for all of them to what it was given as, or to zero.
Tensor start_state(const Tensor& all, const Tensor& given, int64_t d) {
  Tensor state = all.select(0, d);
  if (all.is_same(given)) return state;
  return given.defined() ? state.copy_(given.select(0, d)) : state.zero_();
}

void step_through(const Call& call, int64_t d, const Scope& scope, const cuda::Plan& plan,
                  const Part& part) {
  const Problem p = call.direction(d);
  const int64_t columns = gates_of(p.cell) * p.H;
  const bool has_c = spec(p.cell).has_c;
  // The outputs serve as the running state: rows that have ended keep theirs.
  const Tensor h_n = start_state(part.h_n, part.h0, d);
  const Tensor c_n = has_c ? start_state(part.c_n, part.c0, d) : Tensor();
  const Tensor hw_buffer = at::empty({p.B, columns}, call.input.options());
  const Matrix w_hh = operand(*call.weights_of(d).w_hh).t(), h = target(h_n),
               hw = target(hw_buffer);

  // Of a projected layer: h before the projection, where it is wanted or, row by row of one step,
  // here.
  Matrix w_hr{};
  Region hidden = part.hidden[d];
  const bool keeps_hidden = hidden.memory.defined();
  Window state, y;
  if (p.projected) {
    w_hr = operand(*call.weights_of(d).w_hr).t();
    if (!keeps_hidden) hidden = {at::empty({p.B, p.H}, call.input.options()), 0, p.H};
    state = Window(h_n);
    y = Window(part.y[d].memory, part.y[d].element, p.P, part.y[d].ld);
  }

  cuda::StepForward a{};
  a.problem = p;
  a.b_hh = address(call.weights_of(d).b_hh);
  a.h = h.data;
  a.c_state = mutable_address(c_n);
  a.ldy = part.y[d].ld;
  a.ldc = part.c[d].ld;
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t t = p.reverse ? p.T - 1 - i : i;
    const int64_t first = p.rows().offset(t);
    a.rows = p.rows().active(t);
    if (a.rows == 0) continue;
    a.hw = nullptr;
    if (i > part.begin || part.h0.defined()) {
      scope.product().set(hw.rows_at(0, a.rows), h.rows_at(0, a.rows), w_hh);
      a.hw = hw.data;
    }
    a.slots = part.slots[d].at(first);
    a.c = part.c[d].at(first);
    const Matrix of_step =
        p.projected
            ? target(hidden.memory, hidden.element_of(keeps_hidden ? first : 0), a.rows, p.H, p.H)
            : Matrix{};
    if (p.projected) {
      a.h = of_step.data;
    } else {
      a.y = part.y[d].at(first);
    }
    check_started(cuda::step_forward(a, scope.stream()), cuda::Pass::kForward, p, plan);
    if (p.projected) {
      scope.product().set(h.rows_at(0, a.rows), of_step, w_hr);
      y.rows(first, a.rows).copy_(state.rows(0, a.rows));
    }
  }
}

}  // namespace

void step_through(const Call& call, const Scope& scope, const cuda::Plan& plan, const Part& part) {
  for (int64_t d = 0; d < call.D; ++d) step_through(call, d, scope, plan, part);
}

void run_part(const Call& call, const Scope& scope, const Part& part) {
  while (true) {
    const cuda::Plan plan = plan_of(cuda::Pass::kForward, call, scope);
    project_input(call, part, scope.product());
    if (plan.kernel == cuda::Kernel::kStepwise) return step_through(call, scope, plan, part);
    const int error = launch(call, scope, plan, part);
    if (!error) return;
    take_out(error, cuda::Pass::kForward, call.problem, plan, scope);
  }
}

Pieces::Pieces(const Call& call)
    : call_(call), every_(std::min(call.problem.every, call.problem.T)) {
  for (int64_t d = 0; d < call.D; ++d) {
    first_[d] = {0};
    for (int64_t end = every_; end < call.problem.T; end += every_)
      first_[d].push_back(first_[d].back() + crossing(d, end).count);
  }
}

RowSpan Pieces::crossing(int64_t d, int64_t end) const {
  const Problem p = call_.direction(d);
  return {first_[d][end / every_ - 1], p.rows().active(p.reverse ? p.T - end : end)};
}

Call Pieces::filled_up(const Call& call) {
  Call filled = call;
  const int64_t T = call.problem.T, every = std::min(call.problem.every, T);
  if (call.problem.packed) {
    filled.problem.T = (T + every - 1) / every * every;
    filled.offsets.resize(filled.problem.T + 1, call.offsets.back());
  }
  return filled;
}

}  // namespace fusedrnn::ops

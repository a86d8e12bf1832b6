// One layer on a CUDA device, backward: the recurrence leaves the gradients of all slots, and what
// they mean for inputs, weights and biases is then a few large products and one sum a direction.
// The reserve is only read, so that a second backward finds it as the first did.
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>

#include "ops/cuda/again.h"
#include "ops/cuda/glue.h"
#include "ops/cuda/offsets.h"
#include "ops/cuda/side.h"
#include "ops/cuda/trust.h"
#include "ops/cuda/weight_gradients.h"
#include "ops/cut.h"
#include "ops/schema.h"

namespace fusedrnn::ops {
namespace {

// The steps [begin, end), counted from the last one.
struct Stretch {
  int64_t begin, end;
  const Part& left;  // what forward left of them
  const Inner& inner;
  Tensor dh, dc;  // gradients of the states that they end with, then of those that they begin with
};

// The recurrence in pieces of the plan's, from the end; what follows from a piece is computed on a
// second stream beside the next one. Returns the first launch's error: nothing was changed then.
int persistent(const BackwardCall& call, const Scope& scope, const cuda::Plan& plan,
               const Stretch& of, WeightGradients& weights) {
  const Problem& p = call.problem;
  const bool whole = of.begin == 0 && of.end == p.T;
  const int64_t chunk = whole ? chunk_of(plan, p.T) : of.end - of.begin;
  const bool has_c = spec(p.cell).has_c, pieces = chunk < of.end - of.begin;
  cuda::Backward a{};
  a.problem = call.direction(0);
  a.directions = int(call.D);
  a.offsets = static_cast<const int64_t*>(address(of.inner.offsets));
  a.ldy = a.lddy = call.D * p.P;
  a.lddc = call.D * p.H;
  for (int64_t d = 0; d < call.D; ++d) {
    cuda::BackwardDirection& to = a.direction[d];
    to.slots = of.left.slots[d].at(0);
    to.c = has_c ? of.left.c[d].at(0) : nullptr;
    to.w_hh = address(call.weights_of(d).w_hh);
    to.h0 = address(call.hx, d * p.B * p.P);
    to.c0 = address(call.cx, d * p.B * p.H);
    to.y = address(call.y, d * p.P);
    to.dy = address(call.dy, d * p.P);
    to.dc = address(call.dstates, d * p.H);
    to.dslots = of.inner.of_slots(d).at(0);
    to.dh0 = mutable_address(of.dh, d * p.B * p.P);
    to.dc0 = mutable_address(of.dc, d * p.B * p.H);
  }
  std::optional<Side> side;
  if (pieces) side.emplace(scope.current(), scope.precision());
  int64_t done = of.begin;  // steps whose gradients went on to the weights
  for (a.begin = of.begin; a.begin < of.end; a.begin = a.end) {
    a.end = std::min(a.begin + chunk, of.end);
    for (int64_t d = 0; d < call.D; ++d) {
      cuda::BackwardDirection& to = a.direction[d];
      to.dh_n = a.begin > 0 ? to.dh0 : address(call.dh_n, d * p.B * p.P);
      to.dc_n = a.begin > 0 ? to.dc0 : address(call.dc_n, d * p.B * p.H);
    }
    // The second stream waits for the last piece alone, yet comes to the device after this one.
    if (a.begin > of.begin) side->fork();
    const int error = cuda::backward(a, plan, scope.stream());
    if (error && a.begin == of.begin) return error;
    check_started(error, cuda::Pass::kBackward, p, plan);
    if (a.begin > of.begin) weights.steps(done, a.begin, side->product());
    done = a.begin;
  }
  if (pieces) side->fork();
  weights.steps(done, of.end, pieces ? side->product() : scope.product());
  if (pieces) side->join();
  return 0;
}

// A gradient of a state as it goes back in time: of the last step's going in, of the first one's
// coming out.
Tensor start_gradient(const Tensor& all, const Tensor& given, int64_t d, int64_t begin) {
  Tensor state = all.select(0, d);
  if (begin > 0) return state;
  return given.defined() ? state.copy_(given.select(0, d)) : state.zero_();
}

// A projected layer's way back through W_hr.
class Projection {
 public:
  // `dstate` is the gradient of h [B, P] as it goes back in time.
  Projection(const BackwardCall& call, int64_t d, const Inner& inner, const Tensor& dstate)
      : w_hr_(operand(*call.weights_of(d).w_hr)),
        dhidden_(at::empty({call.problem.B, call.problem.H}, call.input.options())),
        state_(dstate),
        sums_(inner.projected, inner.of_projected(d).element, call.problem.P, call.problem.P) {
    const int64_t P = call.problem.P;
    if (call.dy.defined()) dy_.emplace(view(call.dy, d * P, call.rows(), P, call.D * P));
  }

  // The gradient of a step's h before the projection, row r for batch row r.
  const Tensor& dhidden() const { return dhidden_; }
  // Fills it. The step's rows begin at row `first` of all steps'.
  void step(int64_t first, int64_t rows, const Products& product) {
    Tensor& sum = sums_.rows(first, rows);
    if (dy_) {
      at::add_out(sum, dy_->rows(first, rows), state_.rows(0, rows));
    } else {
      sum.copy_(state_.rows(0, rows));
    }
    product.set(target(dhidden_).rows_at(0, rows), operand(sum), w_hr_);
  }

 private:
  Matrix w_hr_;
  Tensor dhidden_;
  Window state_, sums_;
  std::optional<Window> dy_;
};

// What step t reads: its rows and where their parts lie.
void read_step(const BackwardCall& call, int64_t d, const Part& left, int64_t t,
               cuda::StepBackward& a) {
  const Problem& p = a.problem;
  const CellSpec& cell = spec(p.cell);
  const Rows rows = p.rows();
  const bool carries = !rows.is_first(t);
  const int64_t first = rows.offset(t), previous = carries ? rows.offset(rows.before(t)) : 0;
  const auto y = [&](int64_t row) { return address(call.y, row * a.ldh + d * p.P); };
  a.rows = rows.active(t);
  a.rows_prev = rows.carried(t);
  if (!p.projected) a.dy = address(call.dy, first * a.lddy + d * p.P);
  if (cell.keeps_slots) {
    a.slots = left.slots[d].at(first);
  } else {
    a.h = y(first);
  }
  if (cell.has_c) {
    a.c = left.c[d].at(first);
    a.dc = address(call.dstates, first * a.lddc + d * p.H);
    a.c_prev = carries ? left.c[d].at(previous) : nullptr;
  }
  if (cell.uses_previous_h) a.h_prev = carries ? y(previous) : nullptr;
}

void stepwise(const BackwardCall& call, int64_t d, const Scope& scope, const cuda::Plan& plan,
              const Stretch& of) {
  const Problem p = call.direction(d);
  const int64_t columns = gates_of(p.cell) * p.H;
  const CellSpec& cell = spec(p.cell);
  const bool keeps_apart = cell.slots != cell.gates;  // part of h W_hh', as GRU's h_n
  const auto options = call.input.options();
  const Tensor dstate = start_gradient(of.dh, call.dh_n, d, of.begin);
  const Tensor dc = cell.has_c ? start_gradient(of.dc, call.dc_n, d, of.begin) : Tensor();
  const Matrix w_hh = operand(*call.weights_of(d).w_hh);
  // What the product with W_hh' takes: of GRU the slots r, z, h_n side by side, of a cell that
  // keeps nothing apart all slots as they are.
  const Region dslots = of.inner.of_slots(d);
  const Tensor dhw_buffer = keeps_apart ? at::empty({p.B, columns}, options) : Tensor();
  const Matrix dh = target(dstate);
  std::optional<Projection> projection;
  if (p.projected) projection.emplace(call, d, of.inner, dstate);

  cuda::StepBackward a{};
  a.problem = p;
  a.c0 = address(call.cx, d * p.B * p.H);
  a.h0 = address(call.hx, d * p.B * p.P);
  a.ldh = a.lddy = call.D * p.P;
  a.lddc = call.D * p.H;
  a.dh = mutable_address(projection ? projection->dhidden() : dstate);
  a.dc_state = mutable_address(dc);
  a.dhw = mutable_address(dhw_buffer);
  for (int64_t i = of.begin; i < of.end; ++i) {
    const int64_t t = p.reverse ? i : p.T - 1 - i, first = p.rows().offset(t);
    read_step(call, d, of.left, t, a);
    if (a.rows == 0) continue;
    if (projection) projection->step(first, a.rows, scope.product());
    a.dslots = dslots.at(first);
    check_started(cuda::step_backward(a, scope.stream()), cuda::Pass::kBackward, p, plan);
    if (i == p.T - 1 && !call.dhx.defined()) break;
    const Matrix into = dh.rows_at(0, a.rows);
    const Matrix from =
        keeps_apart ? operand(dhw_buffer, 0, a.rows, columns, columns)
                    : operand(dslots.memory, dslots.element_of(first), a.rows, columns, columns);
    // Some of dh reaches h before past the product, where the cell mixes it in; else nothing does.
    cell.uses_previous_h ? scope.product().add(into, from, w_hh)
                         : scope.product().set(into, from, w_hh);
  }
}

// By whichever kernel the plan names and the device starts.
void run_stretch(const BackwardCall& call, const Scope& scope, const Stretch& of,
                 WeightGradients& weights) {
  cuda::Plan plan = plan_of(cuda::Pass::kBackward, call, scope);
  while (plan.kernel != cuda::Kernel::kStepwise) {
    const int error = persistent(call, scope, plan, of, weights);
    if (!error) break;
    take_out(error, cuda::Pass::kBackward, call.problem, plan, scope);
    plan = plan_of(cuda::Pass::kBackward, call, scope);
  }
  if (plan.kernel == cuda::Kernel::kStepwise) {
    for (int64_t d = 0; d < call.D; ++d) stepwise(call, d, scope, plan, of);
    weights.steps(of.begin, of.end, scope.product());
  }
  weights.finish(of.left, scope.product());
}

// Gradients for `rows` rows a direction.
Inner inner_of(const BackwardCall& call, const Scope& scope, int64_t rows) {
  const Problem& p = call.problem;
  const auto options = call.input.options();
  Inner inner;
  inner.offsets = device_offsets(call, scope.current());
  inner.dslots = at::empty({call.D, rows, cuda::slots_of(p.cell, true) * p.H}, options);
  if (p.projected) inner.projected = at::empty({call.D, rows, p.P}, options);
  return inner;
}

// What forward left in the reserve.
Part left_in_reserve(const BackwardCall& call) {
  const Problem& p = call.problem;
  const int64_t width = call.reserve.size(2), row = cuda::slots_of(p.cell, true) * p.H;
  Part left{};
  left.end = p.T;
  for (int64_t d = 0; d < call.D; ++d) {
    const Kept kept(p, call.rows(), width, d);
    if (width > 0) left.slots[d] = {call.reserve, kept.slots, row};
    if (spec(p.cell).has_c) left.c[d] = {call.reserve, kept.c, p.H};
    if (p.projected) left.hidden[d] = {call.reserve, kept.hidden, p.H};
  }
  return left;
}

// Where the gradient of a state goes back in time, wanted or not.
Tensor state_of(const BackwardCall& call, const Tensor& wanted, int64_t columns) {
  return wanted.defined() ? wanted
                          : at::empty({call.D, call.problem.B, columns}, call.input.options());
}

// A piece after the other, from the end: forward again, then back.
void run_in_pieces(const BackwardCall& call, const Scope& scope) {
  const Call filled = Pieces::filled_up(call);
  const Pieces pieces(filled);
  BackwardCall inner_call = call;
  static_cast<Call&>(inner_call) = filled;
  // Kernels see a problem whose steps' gates are all there.
  Call forward = filled;
  forward.problem.every = 0;
  const Problem& p = filled.problem;
  GatesAgain gates(inner_call, forward, pieces);
  Inner inner = inner_of(inner_call, scope, gates.most_rows());
  WeightGradients sums(inner_call, inner, scope);
  const Tensor dh = state_of(call, call.dhx, p.P);
  const Tensor dc = spec(p.cell).has_c ? state_of(call, call.dcx, p.H) : Tensor();
  const int64_t every = pieces.every();
  for (int64_t begin = (p.T - 1) / every * every; begin >= 0; begin -= every) {
    const int64_t end = std::min(begin + every, p.T);
    const Part& left = gates.make(begin, end, scope);
    for (int64_t d = 0; d < call.D; ++d) {
      const RowSpan rows = rows_of(filled, d, begin, end);
      inner.first[d] = rows.first;
      inner.count[d] = rows.count;
    }
    run_stretch(inner_call, scope, {p.T - end, p.T - begin, left, inner, dh, dc}, sums);
  }
}

void run(const BackwardCall& call, const Scope& scope) {
  const Problem& p = call.problem;
  if (call.rows() == 0) return;
  if (again(p)) return run_in_pieces(call, scope);
  Inner inner = inner_of(call, scope, call.rows());
  for (int64_t& count : inner.count) count = call.rows();
  WeightGradients sums(call, inner, scope);
  const Tensor dc = spec(p.cell).has_c ? state_of(call, call.dcx, p.H) : Tensor();
  run_stretch(call, scope,
              {0, p.T, left_in_reserve(call), inner, state_of(call, call.dhx, p.P), dc}, sums);
}

std::vector<Tensor> layer_backward_cuda(const Operands& o, const Cotangents& c) {
  const Scope scope(o.input);
  const BackwardCall call = check_backward(o, c, Cuts::kAsSegments, cuda_reserve_width);
  run_cut(call, [&](const BackwardCall& cut) { run(cut, scope); });
  return call.results();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("layer_backward", layer_backward_op<layer_backward_cuda>);
}

}  // namespace fusedrnn::ops

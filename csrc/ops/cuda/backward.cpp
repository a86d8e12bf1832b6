// One layer on a CUDA device, backward: the recurrence leaves the gradients of all slots, and what
// they mean for inputs, weights and biases is then a few large products and one sum a direction.
// The reserve is only read, so that a second backward finds it as the first did.
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <optional>

#include "ops/cuda/glue.h"
#include "ops/cuda/offsets.h"
#include "ops/cuda/side.h"
#include "ops/cuda/trust.h"
#include "ops/cuda/weight_gradients.h"
#include "ops/cut.h"
#include "ops/schema.h"

namespace fusedrnn::ops {
namespace {

// The recurrence in pieces of the plan's, from the end; what follows from a piece is computed on a
// second stream beside the next one. Returns the first launch's error: nothing was changed then.
int persistent(const BackwardCall& call, const Scope& scope, const cuda::Plan& plan,
               const Inner& inner, WeightGradients& weights) {
  const Problem& p = call.problem;
  const int64_t chunk = chunk_of(plan, p.T);
  const bool has_c = spec(p.cell).has_c, pieces = chunk < p.T;
  // Where the gradient of the state goes from piece to piece, wanted or not.
  const auto state = [&](const Tensor& result) {
    return result.defined() || !pieces ? result
                                       : at::empty({call.D, p.B, p.H}, call.input.options());
  };
  const Tensor dh = state(call.dhx), dc = has_c ? state(call.dcx) : Tensor();
  cuda::Backward a{};
  a.problem = call.direction(0);
  a.directions = int(call.D);
  a.offsets = static_cast<const int64_t*>(address(inner.offsets));
  a.ldy = a.lddy = call.D * p.P;
  a.lddc = call.D * p.H;
  for (int64_t d = 0; d < call.D; ++d) {
    const Kept kept(p, call.rows(), call.reserve.size(2), d);
    cuda::BackwardDirection& to = a.direction[d];
    if (call.reserve.size(2) > 0) to.slots = address(call.reserve, kept.slots);
    to.c = has_c ? address(call.reserve, kept.c) : nullptr;
    to.w_hh = address(call.weights_of(d).w_hh);
    to.h0 = address(call.hx, d * p.B * p.P);
    to.c0 = address(call.cx, d * p.B * p.H);
    to.y = address(call.y, d * p.P);
    to.dy = address(call.dy, d * p.P);
    to.dc = address(call.dstates, d * p.H);
    to.dslots = mutable_address(inner.dslots, d * inner.dslots.stride(0));
    to.dh0 = mutable_address(dh, d * p.B * p.P);
    to.dc0 = mutable_address(dc, d * p.B * p.H);
  }
  std::optional<Side> side;
  if (pieces) side.emplace(scope.current(), scope.precision());
  int64_t done = 0;  // steps whose gradients went on to the weights
  for (a.begin = 0; a.begin < p.T; a.begin = a.end) {
    a.end = std::min(a.begin + chunk, p.T);
    for (int64_t d = 0; d < call.D; ++d) {
      cuda::BackwardDirection& to = a.direction[d];
      to.dh_n = a.begin > 0 ? to.dh0 : address(call.dh_n, d * p.B * p.P);
      to.dc_n = a.begin > 0 ? to.dc0 : address(call.dc_n, d * p.B * p.H);
    }
    // The second stream waits for the last piece alone, yet comes to the device after this one.
    if (a.begin > 0) side->fork();
    const int error = cuda::backward(a, plan, scope.stream());
    if (error && a.begin == 0) return error;
    check_started(error, cuda::Pass::kBackward, p, plan);
    if (a.begin > 0) weights.steps(done, a.begin, side->product());
    done = a.begin;
  }
  if (pieces) side->fork();
  weights.steps(done, p.T, pieces ? side->product() : scope.product());
  if (pieces) side->join();
  return 0;
}

// The gradient of a state as it goes back in time: of the last step's going in, of the first one's
// coming out, and that in its place among the results if it is wanted.
Tensor start_gradient(const Tensor& result, const Tensor& given, int64_t d, int64_t rows,
                      int64_t columns, const at::TensorOptions& options) {
  Tensor state = result.defined() ? result.select(0, d) : at::empty({rows, columns}, options);
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
        sums_(inner.projected.select(0, d)) {
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
void read_step(const BackwardCall& call, int64_t d, const Kept& kept, int64_t t,
               cuda::StepBackward& a) {
  const Problem& p = a.problem;
  const CellSpec& cell = spec(p.cell);
  const Rows rows = p.rows();
  const bool carries = !rows.is_first(t);
  const int64_t first = rows.offset(t), previous = carries ? rows.offset(rows.before(t)) : 0;
  const auto y = [&](int64_t row) { return address(call.y, row * a.ldh + d * p.P); };
  const auto c = [&](int64_t row) { return address(call.reserve, kept.c + row * p.H); };
  a.rows = rows.active(t);
  a.rows_prev = rows.carried(t);
  if (!p.projected) a.dy = address(call.dy, first * a.lddy + d * p.P);
  if (cell.keeps_slots) {
    a.slots = address(call.reserve, kept.slots + first * cuda::slots_of(p.cell, true) * p.H);
  } else {
    a.h = y(first);
  }
  if (cell.has_c) {
    a.c = c(first);
    a.dc = address(call.dstates, first * a.lddc + d * p.H);
    a.c_prev = carries ? c(previous) : nullptr;
  }
  if (cell.uses_previous_h) a.h_prev = carries ? y(previous) : nullptr;
}

void stepwise(const BackwardCall& call, int64_t d, const Scope& scope, const cuda::Plan& plan,
              const Inner& inner) {
  const Problem p = call.direction(d);
  const int64_t columns = gates_of(p.cell) * p.H;
  const CellSpec& cell = spec(p.cell);
  const bool keeps_apart = cell.slots != cell.gates;  // part of h W_hh', as GRU's h_n
  const auto options = call.input.options();
  const Kept kept(p, call.rows(), call.reserve.size(2), d);
  const Tensor dstate = start_gradient(call.dhx, call.dh_n, d, p.B, p.P, options);
  const Tensor dc =
      cell.has_c ? start_gradient(call.dcx, call.dc_n, d, p.B, p.H, options) : Tensor();
  const Matrix w_hh = operand(*call.weights_of(d).w_hh);
  // What the product with W_hh' takes: of GRU the slots r, z, h_n side by side, of a cell that
  // keeps nothing apart all slots as they are.
  const Tensor dslots = inner.dslots.select(0, d);
  const Tensor dhw_buffer = keeps_apart ? at::empty({p.B, columns}, options) : dslots;
  const Matrix dh = target(dstate), dhw = operand(dhw_buffer, 0, call.rows(), columns, columns);
  std::optional<Projection> projection;
  if (p.projected) projection.emplace(call, d, inner, dstate);

  cuda::StepBackward a{};
  a.problem = p;
  a.c0 = address(call.cx, d * p.B * p.H);
  a.h0 = address(call.hx, d * p.B * p.P);
  a.ldh = a.lddy = call.D * p.P;
  a.lddc = call.D * p.H;
  a.dh = mutable_address(projection ? projection->dhidden() : dstate);
  a.dc_state = mutable_address(dc);
  a.dhw = keeps_apart ? mutable_address(dhw_buffer) : nullptr;
  for (int64_t i = p.T - 1; i >= 0; --i) {
    const int64_t t = p.reverse ? p.T - 1 - i : i, first = p.rows().offset(t);
    read_step(call, d, kept, t, a);
    if (projection) projection->step(first, a.rows, scope.product());
    a.dslots = mutable_address(dslots, first * dslots.size(1));
    check_started(cuda::step_backward(a, scope.stream()), cuda::Pass::kBackward, p, plan);
    if (i == 0 && !call.dhx.defined()) break;
    const Matrix into = dh.rows_at(0, a.rows), from = dhw.rows_at(keeps_apart ? 0 : first, a.rows);
    // Some of dh reaches h before past the product, where the cell mixes it in; else nothing does.
    cell.uses_previous_h ? scope.product().add(into, from, w_hh)
                         : scope.product().set(into, from, w_hh);
  }
}

void run(const BackwardCall& call, const Scope& scope) {
  const Problem& p = call.problem;
  const int64_t D = call.D, N = call.rows();
  if (N == 0) return;

  const auto options = call.input.options();
  cuda::Plan plan = plan_of(cuda::Pass::kBackward, call, scope);
  Inner inner;
  inner.offsets = device_offsets(call, scope.current());
  inner.dslots = at::empty({D, N, cuda::slots_of(p.cell, true) * p.H}, options);
  if (p.projected) inner.projected = at::empty({D, N, p.P}, options);
  WeightGradients sums(call, inner, scope);
  while (plan.kernel != cuda::Kernel::kStepwise) {
    const int error = persistent(call, scope, plan, inner, sums);
    if (!error) break;
    take_out(error, cuda::Pass::kBackward, p, plan, scope);
    plan = plan_of(cuda::Pass::kBackward, call, scope);
  }
  if (plan.kernel == cuda::Kernel::kStepwise) {
    for (int64_t d = 0; d < D; ++d) stepwise(call, d, scope, plan, inner);
    sums.steps(0, p.T, scope.product());
  }
  sums.finish(scope.product());
}

std::vector<Tensor> layer_backward_cuda(const Operands& o, const Cotangents& c) {
  const Scope scope(o.input);
  const BackwardCall call = check_backward(o, c, cuda_reserve_width);
  run_cut(call, [&](const BackwardCall& cut) { run(cut, scope); });
  return call.results();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) {
  m.impl("layer_backward", layer_backward_op<layer_backward_cuda>);
}

}  // namespace fusedrnn::ops

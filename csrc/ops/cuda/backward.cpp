// One layer on a CUDA device, backward: the recurrence leaves the gradients of all slots, and what
// they mean for inputs, weights and biases is then a few large products and one sum a direction.
// The reserve is only read, so that a second backward finds it as the first did.
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include "ops/cuda/glue.h"

namespace fusedrnn::ops {
namespace {

// Gradients on their way from the outputs to the weights; buffers for all directions.
struct Inner {
  Tensor dslots;     // [D, N, S*H]
  Tensor projected;  // [D, N, P]    of h after the projection, projected
};

void persistent(const BackwardCall& call, const Scope& scope, const cuda::Plan& plan,
                const Tensor& offsets, const Inner& inner) {
  const Problem& p = call.problem;
  const bool lstm = p.cell == Cell::kLstm;
  cuda::Backward a{};
  a.problem = call.direction(0);
  a.directions = int(call.D);
  a.end = call.problem.T;
  a.offsets = static_cast<const int64_t*>(read(offsets));
  a.ldy = a.lddy = call.D * p.P;
  for (int64_t d = 0; d < call.D; ++d) {
    const Kept kept(p, call.rows(), call.reserve.size(2), d);
    cuda::BackwardDirection& to = a.direction[d];
    if (call.reserve.size(2) > 0) to.slots = read(call.reserve, kept.slots);
    to.c = lstm ? read(call.reserve, kept.c) : nullptr;
    to.w_hh = read(call.weight(d, 1));
    to.h0 = read(call.hx, d * p.B * p.P);
    to.c0 = read(call.cx, d * p.B * p.H);
    to.y = read(call.y, d * p.P);
    to.dy = read(call.dy, d * p.P);
    to.dh_n = read(call.dh_n, d * p.B * p.P);
    to.dc_n = read(call.dc_n, d * p.B * p.H);
    to.dslots = write(inner.dslots, d * inner.dslots.stride(0));
    to.dh0 = write(call.dhx, d * p.B * p.P);
    to.dc0 = write(call.dcx, d * p.B * p.H);
  }
  check_started(cuda::backward(a, plan, scope.stream()), cuda::Pass::kBackward, p, plan);
}

// The gradient of a state as it goes back in time: of the last step's going in, of the first one's
// coming out, and that in its place among the results if it is wanted.
Tensor start_gradient(const Tensor& result, const Tensor& given, int64_t d, int64_t rows,
                      int64_t columns, const at::TensorOptions& options) {
  Tensor state = result.defined() ? result.select(0, d) : at::empty({rows, columns}, options);
  return given.defined() ? state.copy_(given.select(0, d)) : state.zero_();
}

void stepwise(const BackwardCall& call, int64_t d, const Scope& scope, const cuda::Plan& plan,
              const Inner& inner) {
  const Problem p = call.direction(d);
  const int64_t S = cuda::slots_of(p.cell, true), columns = gates_of(p.cell) * p.H;
  const int64_t ld = call.D * p.P;
  const bool lstm = p.cell == Cell::kLstm, gru = p.cell == Cell::kGru;
  const auto options = call.input.options();
  const Kept kept(p, call.rows(), call.reserve.size(2), d);
  const Tensor dstate = start_gradient(call.dhx, call.dh_n, d, p.B, p.P, options);
  const Tensor dc = lstm ? start_gradient(call.dcx, call.dc_n, d, p.B, p.H, options) : Tensor();
  const Tensor& w_hh = call.weight(d, 1);
  // What the product with W_hh' takes: GRU's slots r, z, h_n side by side, others' as they are.
  const Tensor dslots = inner.dslots.select(0, d);
  const Tensor dhw_buffer = gru ? at::empty({p.B, columns}, options) : dslots;
  Window dh(dstate), dhw(dhw_buffer);

  Tensor w_hr, dhidden;
  Window hidden, projected, dy;
  if (p.projected) {
    w_hr = call.weight(d, call.per_direction - 1);
    dhidden = at::empty({p.B, p.H}, options);
    hidden = Window(dhidden);
    projected = Window(inner.projected.select(0, d));
    if (call.dy.defined()) dy = Window(matrix(call.dy, d * p.P, call.rows(), p.P, ld));
  }

  cuda::StepBackward a{};
  a.problem = p;
  a.c0 = read(call.cx, d * p.B * p.H);
  a.h0 = read(call.hx, d * p.B * p.P);
  a.ldh = a.lddy = ld;
  a.dh = write(p.projected ? dhidden : dstate);
  a.dc_state = write(dc);
  for (int64_t i = p.T - 1; i >= 0; --i) {
    const int64_t t = p.reverse ? p.T - 1 - i : i, before = p.reverse ? t + 1 : t - 1;
    const int64_t first = p.offset(t);
    a.rows = p.rows(t);
    a.rows_prev = i > 0 ? p.rows(before) : 0;
    if (p.projected) {
      Tensor& sum = projected.rows(first, a.rows);
      if (call.dy.defined()) {
        at::add_out(sum, dy.rows(first, a.rows), dh.rows(0, a.rows));
      } else {
        sum.copy_(dh.rows(0, a.rows));
      }
      product(hidden.rows(0, a.rows), sum, w_hr);
    } else {
      a.dy = read(call.dy, first * ld + d * p.P);
    }
    if (lstm || gru) a.slots = read(call.reserve, kept.slots + first * S * p.H);
    if (lstm) {
      a.c = read(call.reserve, kept.c + first * p.H);
      a.c_prev = i > 0 ? read(call.reserve, kept.c + p.offset(before) * p.H) : nullptr;
    } else {
      a.h = read(call.y, first * ld + d * p.P);
      a.h_prev = i > 0 ? read(call.y, p.offset(before) * ld + d * p.P) : nullptr;
    }
    a.dslots = write(dslots, first * S * p.H);
    a.dhw = gru ? write(dhw_buffer) : nullptr;
    check_started(cuda::step_backward(a, scope.stream()), cuda::Pass::kBackward, p, plan);
    if (i == 0 && !call.dhx.defined()) break;
    const Tensor& into = dh.rows(0, a.rows);
    const Tensor& from = dhw.rows(gru ? 0 : first, a.rows);
    gru ? add_product(into, from, w_hh) : product(into, from, w_hh);
  }
}

// dw = dslots' h, where row r of dslots came from h[r], made of the rows of y one step before and
// of h0 for the first step.
void recurrent_gradient(const BackwardCall& call, int64_t d, const Tensor& dslots,
                        const Tensor& packed_h, Tensor dw) {
  const Problem p = call.direction(d);
  const int64_t N = call.rows(), later = N - p.B;
  if (packed_h.defined()) {
    product(dw, dslots.t(), packed_h);
    return;
  }
  bool started = later > 0;
  if (started) {
    const Tensor y = matrix(call.y, d * p.P, N, p.P, call.D * p.P);
    const int64_t from = p.reverse ? p.B : 0, to = p.reverse ? 0 : p.B;
    product(dw, dslots.narrow(0, to, later).t(), y.narrow(0, from, later));
  }
  if (call.hx.defined()) {
    const Tensor first = dslots.narrow(0, p.reverse ? later : 0, p.B).t();
    const Tensor h0 = call.hx.select(0, d);
    started ? add_product(dw, first, h0) : product(dw, first, h0);
    started = true;
  }
  if (!started) dw.zero_();
}

// h that each row was computed from, as a matrix of its own; undefined where a view will do.
Tensor previous_h(const BackwardCall& call, int64_t d, const Scope& scope, const cuda::Plan& plan,
                  const Tensor& offsets) {
  if (!offsets.defined()) return {};
  const Tensor h = at::empty({call.rows(), call.problem.P}, call.input.options());
  cuda::PreviousH a{};
  a.problem = call.direction(d);
  a.offsets = static_cast<const int64_t*>(read(offsets));
  a.h0 = read(call.hx, d * call.problem.B * call.problem.P);
  a.y = read(call.y, d * call.problem.P);
  a.ldy = call.D * call.problem.P;
  a.h = write(h);
  check_started(cuda::previous_h(a, scope.stream()), cuda::Pass::kBackward, call.problem, plan);
  return h;
}

// Of its slots r, z, n, h_n, GRU's input reaches the first three and h all but the third; of other
// cells both reach all.
void bias_gradients(Cell cell, int64_t H, const Tensor& dslots, Tensor db_ih, Tensor db_hh) {
  if (!db_ih.defined() && !db_hh.defined()) return;
  if (cell != Cell::kGru) {
    Tensor sum = db_ih.defined() ? db_ih : db_hh;
    at::sum_out(sum, dslots, {0});
    if (db_ih.defined() && db_hh.defined()) db_hh.copy_(db_ih);
    return;
  }
  const Tensor sum = at::sum(dslots, {0});
  if (db_ih.defined()) db_ih.copy_(sum.narrow(0, 0, 3 * H));
  if (db_hh.defined()) {
    db_hh.narrow(0, 0, 2 * H).copy_(sum.narrow(0, 0, 2 * H));
    db_hh.narrow(0, 2 * H, H).copy_(sum.narrow(0, 3 * H, H));
  }
}

void weight_gradients(const BackwardCall& call, int64_t d, bool has_biases, const Scope& scope,
                      const cuda::Plan& plan, const Tensor& offsets, const Inner& inner) {
  const Problem& p = call.problem;
  const int64_t N = call.rows(), columns = gates_of(p.cell) * p.H;
  const Tensor dslots = inner.dslots.select(0, d);
  const Tensor of_x = dslots.narrow(1, 0, columns);
  const Tensor* dw = call.dweight(d);
  if (call.dx.defined()) {
    Tensor dx = call.dx.view({N, p.I});
    d == 0 ? product(dx, of_x, call.weight(d, 0)) : add_product(dx, of_x, call.weight(d, 0));
  }
  if (dw[0].defined()) product(dw[0], of_x.t(), call.input.view({N, p.I}));
  if (dw[1].defined()) {
    const Tensor h = previous_h(call, d, scope, plan, offsets);
    if (p.cell == Cell::kGru) {
      recurrent_gradient(call, d, dslots.narrow(1, 0, 2 * p.H), h, dw[1].narrow(0, 0, 2 * p.H));
      recurrent_gradient(call, d, dslots.narrow(1, 3 * p.H, p.H), h, dw[1].narrow(0, 2 * p.H, p.H));
    } else {
      recurrent_gradient(call, d, dslots, h, dw[1]);
    }
  }
  if (has_biases) bias_gradients(p.cell, p.H, dslots, dw[2], dw[3]);
  const Tensor dw_hr = p.projected ? dw[call.per_direction - 1] : Tensor();
  if (dw_hr.defined()) {
    const Kept kept(p, N, call.reserve.size(2), d);
    product(dw_hr, inner.projected.select(0, d).t(),
            matrix(call.reserve, kept.hidden, N, p.H, p.H));
  }
}

std::vector<Tensor> layer_backward_cuda(const OptionalTensor& grad_output,
                                        const OptionalTensor& grad_h_n,
                                        const OptionalTensor& grad_c_n, const Tensor& input,
                                        const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                                        const OptionalTensor& cx, at::TensorList weights,
                                        const Tensor& output, const Tensor& reserve,
                                        c10::string_view mode, bool has_biases,
                                        const c10::List<bool>& needs) {
  const Scope scope(input);
  const BackwardCall call =
      check_backward(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                     reserve, mode, has_biases, needs, cuda_reserve_width);
  const Problem& p = call.problem;
  const int64_t D = call.D, N = call.rows();
  if (N == 0) return call.results();

  const auto options = call.input.options();
  const cuda::Plan plan = plan_of(cuda::Pass::kBackward, call, scope);
  const Tensor offsets = device_offsets(call);
  Inner inner;
  inner.dslots = at::empty({D, N, cuda::slots_of(p.cell, true) * p.H}, options);
  if (p.projected) inner.projected = at::empty({D, N, p.P}, options);
  if (plan.kernel == cuda::Kernel::kStepwise) {
    for (int64_t d = 0; d < D; ++d) stepwise(call, d, scope, plan, inner);
  } else {
    persistent(call, scope, plan, offsets, inner);
  }
  for (int64_t d = 0; d < D; ++d) {
    weight_gradients(call, d, has_biases, scope, plan, offsets, inner);
  }
  return call.results();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) { m.impl("layer_backward", layer_backward_cuda); }

}  // namespace fusedrnn::ops

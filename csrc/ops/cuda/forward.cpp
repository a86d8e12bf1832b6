// One layer on a CUDA device, forward. The products with all inputs are one matrix product a
// direction, straight into the buffer that the recurrence then works in, which when training is the
// reserve. The recurrence is one launch for both directions where a persistent kernel can run it,
// else a product and an element-wise kernel a step. Nothing here waits for the device, but for
// lengths and resets that lie on it: the host reads them once, to make packed rows of them.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdlib>
#include <optional>

#include "ops/cuda/glue.h"
#include "ops/cuda/offsets.h"
#include "ops/cuda/side.h"
#include "ops/cuda/trust.h"
#include "ops/cudnn.h"
#include "ops/cut.h"
#include "ops/schema.h"

namespace fusedrnn::ops {
namespace {

Precision precision_of(const Tensor& input, int device, bool ieee) {
  constexpr int kFirstWithTf32 = 80;
  if (input.scalar_type() == at::kDouble) return Precision::kFloat64;
  const bool tf32 = !ieee && cuda_device(device).sm >= kFirstWithTf32;
  return tf32 ? Precision::kTf32 : Precision::kFloat32;
}

}  // namespace

Scope::Scope(const Tensor& input)
    : no_autocast_(c10::autocast_dispatch_keyset),
      guard_(input.device()),
      stream_(c10::cuda::getCurrentCUDAStream(input.device().index())),
      ieee_(!rnn_takes_tf32()),
      precision_(precision_of(input, device(), ieee_)),
      product_(precision_, stream_) {}

cuda::Plan plan_of(cuda::Pass pass, const Call& call, const Scope& scope) {
  const Restriction restriction = cuda_restriction();
  TORCH_CHECK_VALUE(restriction.ours(),
                    "fusedrnn: FUSEDRNN_CUDA_KERNEL=torch leaves a layer by itself no kernel: "
                    "torch's own path takes whole stacks of plain tensors, outside torch.compile");
  return trusted(pass, call, scope, [&] {
    return plan_of(pass, call.direction(0), {int(call.D), 1, !scope.is_ieee()},
                   {scope.device(), cuda_device(scope.device())}, restriction.without_torch());
  });
}

void check_started(int error, cuda::Pass pass, const Problem& problem, const cuda::Plan& plan) {
  if (error == 0) return;
  const char* const reason = cuda::error_string(error);
  throw NotStarted(c10::str("fusedrnn: a kernel did not start, ", reason, " (",
                            describe(pass, problem, plan), ")"),
                   reason);
}

int64_t chunk_of(const cuda::Plan& plan, int64_t T) {
  const char* const wish = std::getenv("FUSEDRNN_CUDA_CHUNK");
  int64_t chunk = plan.chunk;
  if (wish && *wish) {
    char* end;
    chunk = std::strtoll(wish, &end, 10);
    TORCH_CHECK_VALUE(*end == 0 && chunk >= 0,
                      "fusedrnn: FUSEDRNN_CUDA_CHUNK must be a number of time steps, 0 for all of "
                      "them, got ",
                      wish);
  }
  return chunk == 0 ? T : std::min(chunk, T);
}

namespace {

struct Outputs {
  Tensor y, h_n, c_n, reserve, states;

  // Where direction d leaves c of every step: in the reserve or, in inference, among the results if
  // it is one; null: nowhere. Its rows lie ldc() elements apart.
  void* c(const Call& call, int64_t d, int64_t row = 0) const {
    const Problem& p = call.problem;
    if (!spec(p.cell).has_c) return nullptr;
    if (p.training)
      return mutable_address(reserve, Kept(p, call.rows(), reserve.size(2), d).c + row * p.H);
    return call.states ? mutable_address(states, row * ldc(call) + d * p.H) : nullptr;
  }
  static int64_t ldc(const Call& call) {
    return call.problem.training ? call.problem.H : call.D * call.problem.H;
  }
};

// Where x W_ih' + b_ih goes and the recurrence works. That is the reserve where there is one; else
// memory for all rows, or for two pieces of a sequence in turn, of which one is made while the
// other is used: what inference needs does not grow with T.
class Slots {
 public:
  Slots(const Call& call, const Tensor& reserve, int64_t width, int64_t chunk)
      : row_(cuda::slots_of(call.problem.cell, call.problem.training) * call.problem.H),
        chunk_(chunk),
        memory_(reserve),
        width_(width) {
    if (width > 0) return;
    const bool whole = chunk == call.problem.T;
    // Of no piece there are more rows than of the first steps'.
    rows_ = whole ? call.rows() : call.direction(0).rows().offset(chunk);
    margin_ = whole ? 0 : kAhead * call.problem.B;
    const int64_t all = (whole ? 1 : 2) * call.D * rows_ + 2 * margin_;
    memory_ = at::empty({all, row_}, call.input.options());
  }

  int64_t row() const { return row_; }
  const Tensor& memory() const { return memory_; }
  // Where row 0 is, or would be, for the steps from `begin` on, whose first row in memory is
  // `first_row`. Rows are counted over the whole sequence always.
  int64_t start(const Call& call, int64_t d, int64_t begin, int64_t first_row) const {
    if (width_ > 0) return Kept(call.problem, call.rows(), width_, d).slots;
    const int64_t half = chunk_ == call.problem.T ? 0 : begin / chunk_ % 2;
    return (margin_ + (half * call.D + d) * rows_ - first_row) * row_;
  }

 private:
  // Steps past the last one of a launch that a kernel may read x of, only to throw it away: what it
  // reads ahead goes by the whole sequence.
  static constexpr int64_t kAhead = 4;

  int64_t row_, chunk_, rows_ = 0, margin_ = 0;
  Tensor memory_;
  int64_t width_;
};

// Rows of the steps [begin, end), counted as direction d takes them.
RowSpan rows_of(const Call& call, int64_t d, int64_t begin, int64_t end) {
  const Problem p = call.direction(d);
  return p.reverse ? rows_of_times(p, p.T - end, p.T - begin) : rows_of_times(p, begin, end);
}

void project_input(const Call& call, const Slots& slots, int64_t begin, int64_t end,
                   const Products& product) {
  const Problem& p = call.problem;
  const int64_t columns = gates_of(p.cell) * p.H;
  for (int64_t d = 0; d < call.D; ++d) {
    const RowSpan rows = rows_of(call, d, begin, end);
    const int64_t at = slots.start(call, d, begin, rows.first) + rows.first * slots.row();
    product.set(target(slots.memory(), at, rows.count, columns, slots.row()),
                operand(call.input, rows.first * p.I, rows.count, p.I, p.I),
                operand(*call.weights_of(d).w_ih).t(), address(call.weights_of(d).b_ih));
  }
}

// Runs the recurrence in pieces of the plan's, the input of the next piece being projected on a
// second stream beside it. Returns the first launch's error: nothing was changed then but slots,
// which can be made again.
int persistent(const Call& call, const Scope& scope, const cuda::Plan& plan, const Slots& slots,
               int64_t chunk, const Outputs& out) {
  const Problem& p = call.problem;
  const Tensor offsets = device_offsets(call, scope.current());
  const bool has_c = spec(p.cell).has_c;
  cuda::Forward a{};
  a.problem = call.direction(0);
  a.directions = int(call.D);
  a.offsets = static_cast<const int64_t*>(address(offsets));
  a.ldy = call.D * p.P;
  a.ldc = Outputs::ldc(call);
  project_input(call, slots, 0, chunk, scope.product());
  std::optional<Side> side;
  if (chunk < p.T) side.emplace(scope.current(), scope.precision());
  for (a.begin = 0; a.begin < p.T; a.begin = a.end) {
    a.end = std::min(a.begin + chunk, p.T);
    for (int64_t d = 0; d < call.D; ++d) {
      cuda::ForwardDirection& to = a.direction[d];
      const RowSpan rows = rows_of(call, d, a.begin, a.end);
      to.slots = mutable_address(slots.memory(), slots.start(call, d, a.begin, rows.first));
      to.w_hh = address(call.weights_of(d).w_hh);
      to.b_hh = address(call.weights_of(d).b_hh);
      to.y = mutable_address(out.y, d * p.P);
      to.h_n = mutable_address(out.h_n, d * p.B * p.P);
      to.h0 = a.begin > 0 ? to.h_n : address(call.hx, d * p.B * p.P);
      if (has_c) {
        to.c = out.c(call, d);
        to.c_n = mutable_address(out.c_n, d * p.B * p.H);
        to.c0 = a.begin > 0 ? to.c_n : address(call.cx, d * p.B * p.H);
      }
    }
    // The next piece goes where the last one was, which must be done; not this one. It comes to
    // the device after this one, lest it takes the multiprocessors that this one could have.
    const bool more = a.end < p.T;
    if (more) side->fork();
    const int error = cuda::forward(a, plan, scope.stream());
    if (error && a.begin == 0) return error;
    check_started(error, cuda::Pass::kForward, p, plan);
    if (!more) break;
    project_input(call, slots, a.end, std::min(a.end + chunk, p.T), side->product());
    side->join();
  }
  return 0;
}

// Sets one direction's state in a buffer for all of them to what it was given as, or to zero.
Tensor start_state(const Tensor& all, const Tensor& given, int64_t d) {
  Tensor state = all.select(0, d);
  return given.defined() ? state.copy_(given.select(0, d)) : state.zero_();
}

void stepwise(const Call& call, int64_t d, const Scope& scope, const cuda::Plan& plan,
              const Slots& slots, const Outputs& out) {
  const Problem p = call.direction(d);
  const int64_t columns = gates_of(p.cell) * p.H, ldy = call.D * p.P, N = call.rows();
  const bool has_c = spec(p.cell).has_c;
  const int64_t start = slots.start(call, d, 0, 0);
  const Kept kept(p, N, p.training ? out.reserve.size(2) : 0, d);
  // The outputs serve as the running state: rows that have ended keep theirs.
  const Tensor h_n = start_state(out.h_n, call.hx, d);
  const Tensor c_n = has_c ? start_state(out.c_n, call.cx, d) : Tensor();
  const Tensor hw_buffer = at::empty({p.B, columns}, call.input.options());
  const Matrix w_hh = operand(*call.weights_of(d).w_hh).t(), h = target(h_n),
               hw = target(hw_buffer);

  // Of a projected layer: h before the projection, in the reserve or, row by row of one step, here.
  Matrix w_hr{}, hidden{};
  Tensor hidden_buffer;
  Window state, y;
  if (p.projected) {
    w_hr = operand(*call.weights_of(d).w_hr).t();
    if (!p.training) hidden_buffer = at::empty({p.B, p.H}, call.input.options());
    hidden = p.training ? target(out.reserve, kept.hidden, N, p.H, p.H) : target(hidden_buffer);
    state = Window(h_n);
    y = Window(view(out.y, d * p.P, N, p.P, ldy));
  }

  cuda::StepForward a{};
  a.problem = p;
  a.b_hh = address(call.weights_of(d).b_hh);
  a.h = h.data;
  a.c_state = mutable_address(c_n);
  a.ldy = ldy;
  a.ldc = Outputs::ldc(call);
  for (int64_t i = 0; i < p.T; ++i) {
    const int64_t t = p.reverse ? p.T - 1 - i : i;
    const int64_t first = p.rows().offset(t);
    a.rows = p.rows().active(t);
    a.hw = nullptr;
    if (i > 0 || call.hx.defined()) {
      scope.product().set(hw.rows_at(0, a.rows), h.rows_at(0, a.rows), w_hh);
      a.hw = hw.data;
    }
    a.slots = mutable_address(slots.memory(), start + first * slots.row());
    a.c = out.c(call, d, first);
    const Matrix of_step = hidden.rows_at(p.training ? first : 0, a.rows);
    if (p.projected) {
      a.h = of_step.data;
    } else {
      a.y = mutable_address(out.y, first * ldy + d * p.P);
    }
    check_started(cuda::step_forward(a, scope.stream()), cuda::Pass::kForward, p, plan);
    if (p.projected) {
      scope.product().set(h.rows_at(0, a.rows), of_step, w_hr);
      y.rows(first, a.rows).copy_(state.rows(0, a.rows));
    }
  }
}

// A reserve holds c of every step; that is copied, since backward reads it by rows of H.
void copy_states(const Call& call, const Outputs& out) {
  const int64_t D = call.D, H = call.problem.H, N = call.rows();
  for (int64_t d = 0; d < D; ++d) {
    const Kept kept(call.problem, N, out.reserve.size(2), d);
    view(out.states, d * H, N, H, D * H).copy_(view(out.reserve, kept.c, N, H, H));
  }
}

LayerResult run(const Call& call, const Scope& scope) {
  const Problem& p = call.problem;
  const auto options = call.input.options();
  const int64_t D = call.D, N = call.rows(), width = cuda_reserve_width(p);
  Outputs out{};
  const auto of_steps = [&](int64_t columns) {
    return p.packed ? at::empty({N, columns}, options) : at::empty({p.T, p.B, columns}, options);
  };
  out.y = of_steps(D * p.P);
  out.h_n = at::empty({D, p.B, p.P}, options);
  out.c_n = spec(p.cell).has_c ? at::empty({D, p.B, p.H}, options) : at::empty({0}, options);
  out.reserve =
      p.training ? at::empty({D, call.kept_rows, width}, options) : at::empty({0}, options);
  out.states = call.states ? of_steps(D * p.H) : at::empty({0}, options);
  if (N == 0) return {out.y, out.h_n, out.c_n, out.reserve, out.states};

  cuda::Plan plan = plan_of(cuda::Pass::kForward, call, scope);
  while (plan.kernel != cuda::Kernel::kStepwise) {
    const int64_t chunk = chunk_of(plan, p.T);
    const Slots slots(call, out.reserve, width, chunk);
    const int error = persistent(call, scope, plan, slots, chunk, out);
    if (!error) break;
    take_out(error, cuda::Pass::kForward, p, plan, scope);
    plan = plan_of(cuda::Pass::kForward, call, scope);
  }
  if (plan.kernel == cuda::Kernel::kStepwise) {
    const Slots slots(call, out.reserve, width, p.T);
    project_input(call, slots, 0, p.T, scope.product());
    for (int64_t d = 0; d < D; ++d) stepwise(call, d, scope, plan, slots, out);
  }
  if (call.states && p.training) copy_states(call, out);
  return {out.y, out.h_n, out.c_n, out.reserve, out.states};
}

LayerResult layer_cuda(const Operands& o) {
  const Scope scope(o.input);
  return run_cut(check(o), [&](const Call& call) { return run(call, scope); });
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) { m.impl("layer", layer_op<layer_cuda>); }

}  // namespace fusedrnn::ops

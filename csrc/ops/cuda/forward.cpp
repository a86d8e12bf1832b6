// One layer on a CUDA device, forward. The products with all inputs are one matrix product a
// direction, straight into the buffer that the recurrence then works in, which when training is the
// reserve. The recurrence is one launch for both directions where a persistent kernel can run it,
// else a product and an element-wise kernel a step. Nothing here waits for the device, but for
// lengths and resets that lie on it: the host reads them once, to make packed rows of them.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdlib>
#include <functional>
#include <optional>

#include "ops/cuda/glue.h"
#include "ops/cuda/recurrence.h"
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
  // it is one.
  Region c(const Call& call, int64_t d) const {
    const Problem& p = call.problem;
    if (!spec(p.cell).has_c) return {};
    if (p.training) return {reserve, Kept(p, call.rows(), reserve.size(2), d).c, p.H};
    if (!call.states) return {};
    return {states, d * p.H, call.D * p.H};
  }
};

// Where x W_ih' + b_ih goes and the recurrence works. That is the reserve where there is one; else
// memory for all rows, or for two pieces of a sequence in turn, of which one is made while the
// other is used: what inference needs does not grow with T.
class Slots {
 public:
  Slots(const Call& call, const Tensor& reserve, int64_t chunk)
      : row_(cuda::slots_of(call.problem.cell, call.problem.training) * call.problem.H),
        chunk_(chunk),
        memory_(reserve),
        width_(call.problem.training ? reserve.size(2) : 0) {
    if (width_ > 0) return;
    const bool whole = chunk == call.problem.T;
    // Of no piece there are more rows than of the first steps'.
    rows_ = whole ? call.rows() : call.direction(0).rows().offset(chunk);
    margin_ = whole ? 0 : kAhead * call.problem.B;
    const int64_t all = (whole ? 1 : 2) * call.D * rows_ + 2 * margin_;
    memory_ = at::empty({all, row_}, call.input.options());
  }

  // For the steps from `begin` on, whose first row in memory is `first_row`.
  Region of(const Call& call, int64_t d, int64_t begin, int64_t first_row) const {
    if (width_ > 0) return {memory_, Kept(call.problem, call.rows(), width_, d).slots, row_};
    const int64_t half = chunk_ == call.problem.T ? 0 : begin / chunk_ % 2;
    return {memory_, (margin_ + (half * call.D + d) * rows_ - first_row) * row_, row_};
  }

 private:
  int64_t row_, chunk_, rows_ = 0, margin_ = 0;
  Tensor memory_;
  int64_t width_;
};

// What is done when so many steps were, on the current stream.
using Border = std::function<void(int64_t end)>;

// The steps of one launch. States pass from one to the next in the results.
Part part_of(const Call& call, const Slots& slots, const Outputs& out, int64_t begin, int64_t end) {
  const Problem& p = call.problem;
  Part part{};
  part.begin = begin;
  part.end = std::min(end, p.T);
  part.h0 = begin > 0 ? out.h_n : call.hx;
  part.c0 = begin > 0 ? out.c_n : call.cx;
  part.h_n = out.h_n;
  part.c_n = out.c_n;
  for (int64_t d = 0; d < call.D; ++d) {
    part.slots[d] = slots.of(call, d, begin, rows_of(call, d, begin, part.end).first);
    part.y[d] = {out.y, d * p.P, call.D * p.P};
    part.c[d] = out.c(call, d);
    if (p.training && p.projected)
      part.hidden[d] = {out.reserve, Kept(p, call.rows(), out.reserve.size(2), d).hidden, p.H};
  }
  return part;
}

// Runs the recurrence in pieces of `chunk` steps, the input of the next piece being projected on a
// second stream beside it. Returns the first launch's error: nothing was changed then but slots,
// which can be made again.
int persistent(const Call& call, const Scope& scope, const cuda::Plan& plan, int64_t chunk,
               const Outputs& out, const Border& border) {
  const int64_t T = call.problem.T;
  const Slots slots(call, out.reserve, chunk);
  Part part = part_of(call, slots, out, 0, chunk);
  project_input(call, part, scope.product());
  std::optional<Side> side;
  if (chunk < T) side.emplace(scope.current(), scope.precision());
  while (true) {
    // The next piece goes where the last one was, which must be done; not this one. It comes to
    // the device after this one, lest it takes the multiprocessors that this one could have.
    const bool more = part.end < T;
    if (more) side->fork();
    const int error = launch(call, scope, plan, part);
    if (error && part.begin == 0) return error;
    check_started(error, cuda::Pass::kForward, call.problem, plan);
    if (!more) return 0;
    if (border) border(part.end);
    part = part_of(call, slots, out, part.end, part.end + chunk);
    project_input(call, part, side->product());
    side->join();
  }
}

void stepwise(const Call& call, const Scope& scope, const cuda::Plan& plan, int64_t chunk,
              const Outputs& out, const Border& border) {
  const Slots slots(call, out.reserve, chunk);
  for (int64_t begin = 0; begin < call.problem.T; begin += chunk) {
    const Part part = part_of(call, slots, out, begin, begin + chunk);
    project_input(call, part, scope.product());
    step_through(call, scope, plan, part);
    if (border && part.end < call.problem.T) border(part.end);
  }
}

// `every`: steps from one border to the next; 0: there are none, and pieces are the plan's.
void run_all(const Call& call, const Scope& scope, int64_t every, const Outputs& out,
             const Border& border = {}) {
  while (true) {
    const cuda::Plan plan = plan_of(cuda::Pass::kForward, call, scope);
    if (plan.kernel == cuda::Kernel::kStepwise)
      return stepwise(call, scope, plan, every ? every : call.problem.T, out, border);
    const int64_t chunk = every ? every : chunk_of(plan, call.problem.T);
    const int error = persistent(call, scope, plan, chunk, out, border);
    if (!error) return;
    take_out(error, cuda::Pass::kForward, call.problem, plan, scope);
  }
}

// As in inference, but that c of the rows that go on past a border goes to the reserve.
void run_in_pieces(const Call& call, const Scope& scope, const Outputs& out) {
  const Call filled = Pieces::filled_up(call);
  const Pieces pieces(filled);
  Call inner = filled;
  inner.problem.training = false;
  inner.problem.every = 0;
  Outputs kept = out;
  kept.reserve = Tensor();
  const auto keep = [&](int64_t end) {
    for (int64_t d = 0; d < call.D; ++d) {
      const RowSpan rows = pieces.crossing(d, end);
      out.reserve.select(0, d)
          .narrow(0, rows.first, rows.count)
          .copy_(out.c_n.select(0, d).narrow(0, 0, rows.count));
    }
  };
  run_all(inner, scope, pieces.every(), kept,
          spec(call.problem.cell).has_c ? Border(keep) : Border());
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

  if (again(p)) {
    run_in_pieces(call, scope, out);
    return {out.y, out.h_n, out.c_n, out.reserve, out.states};
  }
  run_all(call, scope, 0, out);
  if (call.states && p.training) copy_states(call, out);
  return {out.y, out.h_n, out.c_n, out.reserve, out.states};
}

LayerResult layer_cuda(const Operands& o) {
  const Scope scope(o.input);
  return run_cut(check(o, Cuts::kAsSegments), [&](const Call& call) { return run(call, scope); });
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) { m.impl("layer", layer_op<layer_cuda>); }

}  // namespace fusedrnn::ops

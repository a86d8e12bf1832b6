// One layer on a CUDA device, forward. The products with all inputs are one matrix product a
// direction, straight into the buffer that the recurrence then works in, which when training is the
// reserve. The recurrence is one launch for both directions where a persistent kernel can run it,
// else a product and an element-wise kernel a step. Nothing here waits for the device.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstring>
#include <mutex>

#include "ops/cuda/glue.h"

namespace fusedrnn::ops {

Scope::Scope(const Tensor& input)
    : no_autocast_(c10::autocast_dispatch_keyset), guard_(input.device()) {
  auto& context = at::globalContext();
  matmul_tf32_ = context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
                 at::Float32Precision::TF32;
  if (context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) !=
      at::Float32Precision::TF32) {
    ieee_.emplace();
  }
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(input.device().index());
  device_ = stream.device_index();
  stream_ = stream.stream();
}

cuda::Plan plan_of(cuda::Pass pass, const Call& call, const Scope& scope) {
  const unsigned allowed = cuda_allowed();
  TORCH_CHECK_VALUE(allowed & kOwnKernels,
                    "fusedrnn: FUSEDRNN_CUDA_KERNEL=torch leaves a layer by itself no kernel: "
                    "torch's own path takes whole stacks of plain tensors, outside torch.compile");
  return cuda_plan(pass, call.direction(0), {int(call.D), 1, !scope.is_ieee()},
                   cuda_device(scope.device()), experience_of(scope.device()),
                   allowed & kOwnKernels);
}

void check_started(int error, cuda::Pass pass, const Problem& problem, const cuda::Plan& plan) {
  TORCH_CHECK(error == 0, "fusedrnn: a kernel did not start, ", cuda::error_string(error), " (",
              describe(pass, problem, plan), ")");
}

Tensor device_offsets(const Call& call) {
  if (call.offsets.empty()) return {};
  const auto count = int64_t(call.offsets.size());
  const Tensor host = at::empty({count}, at::TensorOptions(at::kLong).pinned_memory(true));
  std::memcpy(host.data_ptr(), call.offsets.data(), count * sizeof(int64_t));
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    // A captured copy reads its source on every replay, and no graph tells when it goes away.
    static std::mutex mutex;
    static auto& sources = *new std::vector<Tensor>;  // outlives the CUDA context
    const std::lock_guard<std::mutex> lock(mutex);
    sources.push_back(host);
  }
  Tensor device = at::empty({count}, call.input.options().dtype(at::kLong));
  return device.copy_(host, /*non_blocking=*/true);
}

namespace {

struct Outputs {
  Tensor y, h_n, c_n, reserve;
  Tensor slots;  // the reserve, or what stands for it
  int64_t width;
};

void project_input(const Call& call, int64_t d, bool has_biases, const Scope& scope, Tensor slots) {
  const Problem& p = call.problem;
  const Tensor x = call.input.view({call.rows(), p.I});
  const Tensor w = call.weight(d, 0).t();
  if (!has_biases) {
    product(slots, x, w);
    return;
  }
  // As a vector, the bias is added by cuBLASLt, which goes by the switch for matrix products alone.
  const Tensor& b = call.weight(d, 2);
  const Tensor bias = scope.overrules_tf32() ? b.expand({x.size(0), b.size(0)}) : b;
  at::addmm_out(slots, bias, x, w);
}

void persistent(const Call& call, bool has_biases, const Scope& scope, const cuda::Plan& plan,
                const Outputs& out) {
  const Problem& p = call.problem;
  const Tensor offsets = device_offsets(call);
  cuda::Forward a{};
  a.problem = call.direction(0);
  a.directions = int(call.D);
  a.end = call.problem.T;
  a.offsets = static_cast<const int64_t*>(read(offsets));
  a.ldy = call.D * p.P;
  for (int64_t d = 0; d < call.D; ++d) {
    const Kept kept(p, call.rows(), out.width, d);
    cuda::ForwardDirection& to = a.direction[d];
    to.slots = write(out.slots, kept.slots);
    to.w_hh = read(call.weight(d, 1));
    to.b_hh = has_biases ? read(call.weight(d, 3)) : nullptr;
    to.h0 = read(call.hx, d * p.B * p.P);
    to.c0 = read(call.cx, d * p.B * p.H);
    to.y = write(out.y, d * p.P);
    to.h_n = write(out.h_n, d * p.B * p.P);
    if (p.cell == Cell::kLstm) {
      to.c = p.training ? write(out.slots, kept.c) : nullptr;
      to.c_n = write(out.c_n, d * p.B * p.H);
    }
  }
  check_started(cuda::forward(a, plan, scope.stream()), cuda::Pass::kForward, p, plan);
}

// Sets one direction's state in a buffer for all of them to what it was given as, or to zero.
Tensor start_state(const Tensor& all, const Tensor& given, int64_t d) {
  Tensor state = all.select(0, d);
  return given.defined() ? state.copy_(given.select(0, d)) : state.zero_();
}

void stepwise(const Call& call, int64_t d, bool has_biases, const Scope& scope,
              const cuda::Plan& plan, const Outputs& out) {
  const Problem p = call.direction(d);
  const int64_t S = cuda::slots_of(p.cell, p.training), columns = gates_of(p.cell) * p.H;
  const int64_t ldy = call.D * p.P;
  const bool lstm = p.cell == Cell::kLstm;
  const Kept kept(p, call.rows(), out.width, d);
  // The outputs serve as the running state: rows that have ended keep theirs.
  const Tensor h_n = start_state(out.h_n, call.hx, d);
  const Tensor c_n = lstm ? start_state(out.c_n, call.cx, d) : Tensor();
  const Tensor w_hh = call.weight(d, 1).t();
  const Tensor hw_buffer = at::empty({p.B, columns}, call.input.options());
  Window h(h_n), hw(hw_buffer);

  // Of a projected layer: h before the projection, in the reserve or, row by row of one step, here.
  Tensor w_hr, hidden_buffer;
  Window hidden, y;
  if (p.projected) {
    w_hr = call.weight(d, call.per_direction - 1).t();
    hidden_buffer = p.training ? matrix(out.slots, kept.hidden, call.rows(), p.H, p.H)
                               : at::empty({p.B, p.H}, call.input.options());
    hidden = Window(hidden_buffer);
    y = Window(matrix(out.y, d * p.P, call.rows(), p.P, ldy));
  }

  cuda::StepForward a{};
  a.problem = p;
  a.b_hh = has_biases ? read(call.weight(d, 3)) : nullptr;
  a.h = write(h_n);
  a.c_state = write(c_n);
  a.ldy = ldy;
  for (int64_t i = 0; i < p.T; ++i) {
    const int64_t t = p.reverse ? p.T - 1 - i : i;
    const int64_t first = p.offset(t);
    a.rows = p.rows(t);
    a.hw = nullptr;
    if (i > 0 || call.hx.defined()) {
      product(hw.rows(0, a.rows), h.rows(0, a.rows), w_hh);
      a.hw = read(hw_buffer);
    }
    a.slots = write(out.slots, kept.slots + first * S * p.H);
    a.c = lstm && p.training ? write(out.slots, kept.c + first * p.H) : nullptr;
    const int64_t at = p.training ? first : 0;
    if (p.projected) {
      a.h = write(hidden_buffer, at * p.H);
    } else {
      a.y = write(out.y, first * ldy + d * p.P);
    }
    check_started(cuda::step_forward(a, scope.stream()), cuda::Pass::kForward, p, plan);
    if (p.projected) {
      const Tensor& projected = h.rows(0, a.rows);
      product(projected, hidden.rows(at, a.rows), w_hr);
      y.rows(first, a.rows).copy_(projected);
    }
  }
}

LayerResult layer_cuda(const Tensor& input, const OptionalTensor& batch_sizes,
                       const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
                       c10::string_view mode, bool has_biases, bool train) {
  const Scope scope(input);
  const Call call = check(input, batch_sizes, hx, cx, weights, mode, has_biases, train);
  const Problem& p = call.problem;
  const auto options = call.input.options();
  const int64_t D = call.D, N = call.rows();
  const int64_t S = cuda::slots_of(p.cell, train), columns = gates_of(p.cell) * p.H;
  Outputs out{};
  out.y = batch_sizes ? at::empty({N, D * p.P}, options) : at::empty({p.T, p.B, D * p.P}, options);
  out.h_n = at::empty({D, p.B, p.P}, options);
  out.c_n = p.cell == Cell::kLstm ? at::empty({D, p.B, p.H}, options) : at::empty({0}, options);
  out.width = cuda_reserve_width(p);
  out.reserve = train ? at::empty({D, N, out.width}, options) : at::empty({0}, options);
  if (N == 0) return {out.y, out.h_n, out.c_n, out.reserve};

  const cuda::Plan plan = plan_of(cuda::Pass::kForward, call, scope);
  out.slots = out.reserve;
  if (out.width == 0) {  // inference, or an Elman cell, whose slope follows from y
    out.width = S * p.H;
    out.slots = at::empty({D, N, out.width}, options);
  }
  for (int64_t d = 0; d < D; ++d) {
    const int64_t slots = Kept(p, N, out.width, d).slots;
    project_input(call, d, has_biases, scope, matrix(out.slots, slots, N, columns, S * p.H));
  }
  if (plan.kernel == cuda::Kernel::kStepwise) {
    for (int64_t d = 0; d < D; ++d) stepwise(call, d, has_biases, scope, plan, out);
  } else {
    persistent(call, has_biases, scope, plan, out);
  }
  return {out.y, out.h_n, out.c_n, out.reserve};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CUDA, m) { m.impl("layer", layer_cuda); }

}  // namespace fusedrnn::ops

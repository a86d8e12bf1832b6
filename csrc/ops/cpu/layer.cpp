// A layer forward on a CPU: check, allocate, fill the parameters, call.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <utility>

#include "cpu/halves.h"
#include "ops/check.h"
#include "ops/cpu/bfloat16.h"
#include "ops/cpu/direction.h"
#include "ops/cut.h"
#include "ops/memory.h"
#include "ops/schema.h"

namespace fusedrnn::ops {

namespace {

LayerResult run(const Call& call) {
  const Problem& shape = call.problem;
  const bool train = shape.training, has_c = spec(shape.cell).has_c;
  const auto options = call.input.options();
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const int64_t rows = call.rows();
  Tensor output = call.inner     ? reused_empty({rows, D * P}, options)
                  : shape.packed ? in_huge_pages(at::empty({rows, D * P}, options))
                                 : in_huge_pages(at::empty({shape.T, B, D * P}, options));
  Tensor h_n = at::empty({D, B, P}, options);
  Tensor c_n = has_c ? at::empty({D, B, H}, options) : at::empty({0}, options);
  const int64_t width = cpu::reserve_width(call.direction(0));
  Tensor reserve =
      train ? reused_empty({D, call.kept_rows, width}, options) : at::empty({0}, options);
  Tensor states = at::empty({0}, options);
  if (call.states) {
    std::vector<int64_t> sizes(output.sizes().begin(), output.sizes().end());
    sizes.back() = D * H;
    states = in_huge_pages(at::empty(sizes, options));
  }
  if (B == 0) return {output, h_n, c_n, reserve, states};

  const cpu::Team workers = team();
  const cpu::Directions work(call.direction(0), int(D), workers, cpu::plan_forward);
  const Tensor workspace = workspace_of(work.bytes(), options);
  cpu::ForwardParams params[2]{};
  for (int64_t d = 0; d < D; ++d) {
    cpu::ForwardParams& a = params[d];
    a = params_of<cpu::ForwardParams>(call, d, mutable_address(workspace, work.begin(d)));
    a.y = mutable_address(output, d * P);
    a.ldy = D * P;
    a.h_n = mutable_address(h_n, d * B * P);
    a.c_n = has_c ? mutable_address(c_n, d * B * H) : nullptr;
    a.c = call.states ? mutable_address(states, d * H) : nullptr;
    a.ldc = D * H;
    a.reserve = train ? mutable_address(reserve, d * call.kept_rows * width) : nullptr;
  }
  work.run(
      [&](const cpu::Team& some, int64_t d) { work.plan.forward(params[d], work.plan, some); });
  return {output, h_n, c_n, reserve, states};
}

// Whether a layer of bfloat16 takes and gives few numbers, and nothing else.
bool is_little(const Call& call) {
  const Problem& shape = call.problem;
  return call.input.scalar_type() == at::kBFloat16 && !shape.training && !call.states &&
         !call.segments && !call.resets.defined() && shape.B > 0 &&
         call.rows() * (shape.I + call.D * shape.P) <= kLittle;
}

// As run(), of such a layer. Its numbers lie in the workspace in float32: a tensor for each of them
// would take longer than the rounding (RNN T1 B1 H128: 1 of 11 us).
LayerResult run_little(const Call& call) {
  const Problem& shape = call.problem;
  const auto options = call.input.options();
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const bool has_c = spec(shape.cell).has_c;
  Tensor output = shape.packed ? at::empty({call.rows(), D * P}, options)
                               : at::empty({shape.T, B, D * P}, options);
  Tensor h_n = at::empty({D, B, P}, options), none = at::empty({0}, options);
  Tensor c_n = has_c ? at::empty({D, B, H}, options) : none;
  const cpu::Team workers = team();
  const cpu::Directions work(call.direction(0), int(D), workers, cpu::plan_forward);
  int64_t numbers = 0;
  const Tensor* const all[] = {&call.input, &call.hx, &call.cx, &output, &h_n, &c_n};
  for (const Tensor* tensor : all) numbers += tensor->defined() ? tensor->numel() : 0;
  const Tensor workspace = workspace_of(work.bytes() + numbers * int64_t(sizeof(float)), options);
  auto* room = static_cast<float*>(mutable_address(workspace, work.bytes()));
  const auto room_for = [&](const Tensor& tensor) {
    return std::exchange(room, room + tensor.numel());
  };
  const auto wide = [&](const Tensor& tensor) -> const float* {
    if (!tensor.defined()) return nullptr;
    float* const to = room_for(tensor);
    widen(tensor.const_data_ptr(), tensor.numel(), to);
    return to;
  };
  const float *x = wide(call.input), *h0 = wide(call.hx), *c0 = wide(call.cx);
  float *y = room_for(output), *h = room_for(h_n), *c = room_for(c_n);
  cpu::ForwardParams params[2]{};
  for (int64_t d = 0; d < D; ++d) {
    cpu::ForwardParams& a = params[d];
    a = params_of<cpu::ForwardParams>(call, d, mutable_address(workspace, work.begin(d)));
    a.x = x;
    a.h0 = h0 ? h0 + d * B * P : nullptr;
    a.c0 = c0 ? c0 + d * B * H : nullptr;
    a.y = y + d * P;
    a.ldy = D * P;
    a.h_n = h + d * B * P;
    a.c_n = has_c ? c + d * B * H : nullptr;
  }
  work.run(
      [&](const cpu::Team& some, int64_t d) { work.plan.forward(params[d], work.plan, some); });
  narrow(y, output.numel(), output.mutable_data_ptr());
  narrow(h, h_n.numel(), h_n.mutable_data_ptr());
  if (has_c) narrow(c, c_n.numel(), c_n.mutable_data_ptr());
  return {output, h_n, c_n, none, none};
}

}  // namespace

LayerResult layer_cpu(const Operands& o) {
  Call call = check(o, Cuts::kInPlace);
  const bool low = o.stored == Stored::kBFloat16;
  if (low && is_little(call)) return run_little(call);
  if (low) {
    for (Tensor* tensor : {&call.input, &call.hx, &call.cx, &call.reset_h, &call.reset_c})
      *tensor = widened(*tensor);
  }
  LayerResult result = run_cut(call, [](const Call& cut) { return run(cut); });
  if (!low || o.input.scalar_type() == at::kFloat) return result;
  auto& [output, h_n, c_n, reserve, states] = result;
  return {narrowed(output), narrowed(h_n), narrowed(c_n), reserve, narrowed(states)};
}

bool keeps_bfloat16(const Operands& o) {
  const auto fits = [](const Tensor& tensor) {
    return tensor.is_cpu() && is_plain(tensor) &&
           !(tensor.requires_grad() && at::GradMode::is_enabled());
  };
  for (const Tensor& weight : o.weights.all) {
    if (weight.scalar_type() != at::kBFloat16) return false;
  }
  return !o.any([&](const Tensor& tensor) { return !fits(tensor); });
}

TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) { m.impl("layer", layer_op<layer_cpu>); }

}  // namespace fusedrnn::ops

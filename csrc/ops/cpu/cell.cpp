// One step of a cell on a CPU without a layer's views and results.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "ops/check.h"
#include "ops/cpu/bfloat16.h"

namespace fusedrnn::ops {
namespace {

// Memory of one dtype, as the kernels take it.
bool is_ready(const Tensor& tensor, at::ScalarType type, at::IntArrayRef shape) {
  return tensor.defined() && tensor.is_cpu() && is_plain(tensor) && tensor.scalar_type() == type &&
         tensor.sizes().equals(shape) && tensor.is_contiguous() &&
         (tensor.storage_offset() + tensor.numel()) * tensor.element_size() <=
             int64_t(tensor.storage().nbytes()) &&
         !(tensor.requires_grad() && at::GradMode::is_enabled());
}

}  // namespace

std::optional<StepResult> step_on_cpu(const Step& s) {
  // Before any size is read: a traced one would become a constant.
  if (!s.input.defined() || !s.hx.defined() || !is_plain(s.input) || !is_plain(s.hx))
    return std::nullopt;
  if (s.input.dim() != 2 || s.hx.dim() != 2) return std::nullopt;
  const at::ScalarType type = s.input.scalar_type();
  const bool low = type == at::kBFloat16;
  if (type != at::kFloat && type != at::kDouble && !low) return std::nullopt;
  Problem p{};
  p.cell = s.cell;
  p.dtypes = all_of(dtype_of(low ? at::kFloat : type));
  if (low) p.dtypes.stored = DType::kBFloat16;
  p.T = 1;
  p.B = s.input.size(0);
  p.I = s.input.size(1);
  p.H = p.P = s.hx.size(1);
  const bool has_c = spec(s.cell).has_c;
  bool fits = p.B > 0 && p.I > 0 && p.H > 0 && s.cx.has_value() == has_c;
  const auto ready = [&](const char*, const Tensor& tensor, at::IntArrayRef shape, const char*) {
    fits = fits && is_ready(tensor, type, shape);
  };
  ready("input", s.input, {p.B, p.I}, "");
  ready("hx", s.hx, {p.B, p.H}, "");
  if (s.cx) ready("cx", *s.cx, {p.B, p.H}, "");
  each_weight(p, s.weights, ready);
  if (!fits) return std::nullopt;

  const cpu::Team workers = team();
  const cpu::Plan plan = cpu::plan_forward(p, workers.threads);
  const Tensor x = widened(s.input), h0 = widened(s.hx), c0 = has_c ? widened(*s.cx) : Tensor();
  Tensor h = at::empty_like(h0);
  Tensor c = has_c ? at::empty_like(h0) : at::empty({0}, s.input.options());
  const int64_t y_bytes = p.B * p.H * size_of(p.dtypes.computed);
  const Tensor workspace =
      at::empty({plan.workspace_bytes + y_bytes}, s.input.options().dtype(at::kByte));
  cpu::ForwardParams a{};
  a.problem = p;
  a.x = address(x);
  a.h0 = address(h0);
  a.c0 = address(c0);
  a.w_ih = address(s.weights.w_ih);
  a.w_hh = address(s.weights.w_hh);
  a.b_ih = address(s.weights.b_ih);
  a.b_hh = address(s.weights.b_hh);
  a.y = mutable_address(workspace, plan.workspace_bytes);
  a.ldy = p.H;
  a.h_n = mutable_address(h);
  a.c_n = has_c ? mutable_address(c) : nullptr;
  a.workspace = mutable_address(workspace);
  plan.forward(a, plan, workers);
  if (low) return std::tuple(narrowed(h), narrowed(c));
  return std::tuple(h, c);
}

}  // namespace fusedrnn::ops

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

std::optional<std::tuple<Tensor, Tensor>> step_on_cpu(const Tensor& input, const Tensor& hx,
                                                      const OptionalTensor& cx, const Tensor& w_ih,
                                                      const Tensor& w_hh,
                                                      const OptionalTensor& b_ih,
                                                      const OptionalTensor& b_hh,
                                                      c10::string_view mode) {
  // Before any size is read: a traced one would become a constant.
  if (!input.defined() || !hx.defined() || !is_plain(input) || !is_plain(hx)) return std::nullopt;
  if (input.dim() != 2 || hx.dim() != 2) return std::nullopt;
  const at::ScalarType type = input.scalar_type();
  const bool low = type == at::kBFloat16;
  if (type != at::kFloat && type != at::kDouble && !low) return std::nullopt;
  Problem p{};
  p.cell = cell_of(mode);
  p.dtypes = all_of(dtype_of(low ? at::kFloat : type));
  if (low) p.dtypes.stored = DType::kBFloat16;
  p.T = 1;
  p.B = input.size(0);
  p.I = input.size(1);
  p.H = p.P = hx.size(1);
  const bool lstm = p.cell == Cell::kLstm;
  const int64_t GH = gates_of(p.cell) * p.H;
  const auto ready = [&](const Tensor& tensor, at::IntArrayRef shape) {
    return is_ready(tensor, type, shape);
  };
  const bool fits =
      p.B > 0 && p.I > 0 && p.H > 0 && cx.has_value() == lstm && ready(input, {p.B, p.I}) &&
      ready(hx, {p.B, p.H}) && (!lstm || ready(*cx, {p.B, p.H})) && ready(w_ih, {GH, p.I}) &&
      ready(w_hh, {GH, p.H}) && (!b_ih || ready(*b_ih, {GH})) && (!b_hh || ready(*b_hh, {GH}));
  if (!fits) return std::nullopt;

  const cpu::Team workers = team();
  const cpu::Plan plan = cpu::plan_forward(p, workers.threads);
  const Tensor x = widened(input), h0 = widened(hx), c0 = lstm ? widened(*cx) : Tensor();
  Tensor h = at::empty_like(h0);
  Tensor c = lstm ? at::empty_like(h0) : at::empty({0}, input.options());
  const int64_t y_bytes = p.B * p.H * size_of(p.dtypes.computed);
  const Tensor workspace =
      at::empty({plan.workspace_bytes + y_bytes}, input.options().dtype(at::kByte));
  cpu::ForwardParams a{};
  a.problem = p;
  a.x = read(x);
  a.h0 = read(h0);
  a.c0 = read(c0);
  a.w_ih = read(w_ih);
  a.w_hh = read(w_hh);
  a.b_ih = b_ih ? read(*b_ih) : nullptr;
  a.b_hh = b_hh ? read(*b_hh) : nullptr;
  a.y = write(workspace, plan.workspace_bytes);
  a.ldy = p.H;
  a.h_n = write(h);
  a.c_n = lstm ? write(c) : nullptr;
  a.workspace = write(workspace);
  cpu::forward(a, plan, workers);
  if (low) return std::tuple(narrowed(h), narrowed(c));
  return std::tuple(h, c);
}

}  // namespace fusedrnn::ops

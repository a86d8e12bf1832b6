// A layer forward on a CPU: check, allocate, fill the parameters, call.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/halves.h"
#include "ops/check.h"
#include "ops/cpu/bfloat16.h"
#include "ops/memory.h"

namespace fusedrnn::ops {
namespace {

LayerResult run_forward(const Call& call) {
  const Problem& shape = call.problem;
  const bool packed = !call.offsets.empty(), has_biases = call.per_direction >= 4;
  const bool train = shape.training;
  const auto options = call.input.options();
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const bool lstm = call.cell == Cell::kLstm;
  const int64_t rows = call.rows();
  Tensor output = in_huge_pages(packed ? at::empty({rows, D * P}, options)
                                       : at::empty({shape.T, B, D * P}, options));
  Tensor h_n = at::empty({D, B, P}, options);
  Tensor c_n = lstm ? at::empty({D, B, H}, options) : at::empty({0}, options);
  const int64_t width = cpu::reserve_width(call.direction(0));
  Tensor reserve = train ? reused_empty({D, rows, width}, options) : at::empty({0}, options);
  if (B == 0) return {output, h_n, c_n, reserve};

  const cpu::Team workers = team();
  const cpu::Directions work(call.direction(0), int(D), workers, cpu::plan_forward);
  const Tensor workspace = workspace_of(work.bytes(), options);
  cpu::ForwardParams params[2]{};
  for (int64_t d = 0; d < D; ++d) {
    cpu::ForwardParams& a = params[d];
    a.problem = call.direction(d);
    a.x = read(call.input);
    a.h0 = read(call.hx, d * B * P);
    a.c0 = read(call.cx, d * B * H);
    a.w_ih = read(call.weight(d, 0));
    a.w_hh = read(call.weight(d, 1));
    a.b_ih = has_biases ? read(call.weight(d, 2)) : nullptr;
    a.b_hh = has_biases ? read(call.weight(d, 3)) : nullptr;
    a.w_hr = shape.projected ? read(call.weight(d, call.per_direction - 1)) : nullptr;
    a.y = write(output, d * P);
    a.ldy = D * P;
    a.h_n = write(h_n, d * B * P);
    a.c_n = lstm ? write(c_n, d * B * H) : nullptr;
    a.reserve = train ? write(reserve, d * rows * width) : nullptr;
    a.workspace = write(workspace, work.begin(d));
  }
  work.run([&](const cpu::Team& some, int64_t d) { cpu::forward(params[d], work.plan, some); });
  return {output, h_n, c_n, reserve};
}

LayerResult layer_cpu(const Tensor& input, const OptionalTensor& batch_sizes,
                      const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
                      c10::string_view mode, bool has_biases, bool train) {
  return run_forward(check(input, batch_sizes, hx, cx, weights, mode, has_biases, train));
}

}  // namespace

bool keeps_bfloat16(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                    at::TensorList weights) {
  const auto fits = [](const Tensor& tensor) {
    return tensor.is_cpu() && is_plain(tensor) &&
           !(tensor.requires_grad() && at::GradMode::is_enabled());
  };
  for (const Tensor& weight : weights) {
    if (weight.scalar_type() != at::kBFloat16 || !fits(weight)) return false;
  }
  return fits(input) && (!hx || fits(*hx)) && (!cx || fits(*cx));
}

LayerResult layer_of_bfloat16(const Tensor& input, const OptionalTensor& batch_sizes,
                              const OptionalTensor& hx, const OptionalTensor& cx,
                              at::TensorList weights, c10::string_view mode, bool has_biases) {
  Call call = check(input, batch_sizes, hx, cx, weights, mode, has_biases, /*train=*/false,
                    Weights::kBFloat16);
  for (Tensor* tensor : {&call.input, &call.hx, &call.cx}) *tensor = widened(*tensor);
  const LayerResult wide = run_forward(call);
  if (input.scalar_type() == at::kFloat) return wide;
  const auto& [output, h_n, c_n, reserve] = wide;
  return {narrowed(output), narrowed(h_n), narrowed(c_n), reserve};
}

TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) { m.impl("layer", layer_cpu); }

}  // namespace fusedrnn::ops

// A layer backward on a CPU: check, allocate, fill the parameters, call.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "cpu/halves.h"
#include "ops/check.h"
#include "ops/memory.h"

namespace fusedrnn::ops {
namespace {

std::vector<Tensor> layer_backward_cpu(const OptionalTensor& grad_output,
                                       const OptionalTensor& grad_h_n,
                                       const OptionalTensor& grad_c_n, const Tensor& input,
                                       const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                                       const OptionalTensor& cx, at::TensorList weights,
                                       const Tensor& output, const Tensor& reserve,
                                       c10::string_view mode, bool has_biases,
                                       const c10::List<bool>& needs) {
  const BackwardCall call =
      check_backward(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                     reserve, mode, has_biases, needs, cpu::reserve_width);
  const Problem& shape = call.problem;
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const int64_t rows = call.rows(), width = call.reserve.size(2);
  if (B == 0) return call.results();
  const cpu::Team workers = team();
  const cpu::Directions work(call.direction(0), int(D), workers, cpu::plan_backward);
  const Tensor workspace = workspace_of(work.bytes(), call.input.options());
  in_huge_pages(call.dx);
  // Summed apart whether or not the directions run at once: bits do not depend on threads.
  const bool apart = D == 2 && cpu::pairs_directions(shape) && call.dx.defined();
  const Tensor dx_of_reverse = apart ? in_huge_pages(at::empty_like(call.dx)) : Tensor();
  cpu::BackwardParams params[2]{};
  for (int64_t d = 0; d < D; ++d) {
    const Tensor* dw = call.dweight(d);
    cpu::BackwardParams& a = params[d];
    a.problem = call.direction(d);
    a.x = read(call.input);
    a.h0 = read(call.hx, d * B * P);
    a.c0 = read(call.cx, d * B * H);
    a.w_ih = read(call.weight(d, 0));
    a.w_hh = read(call.weight(d, 1));
    a.w_hr = shape.projected ? read(call.weight(d, call.per_direction - 1)) : nullptr;
    a.y = read(call.y, d * P);
    a.ldy = D * P;
    a.reserve = read(call.reserve, d * rows * width);
    a.dy = read(call.dy, d * P);
    a.lddy = D * P;
    a.dh_n = read(call.dh_n, d * B * P);
    a.dc_n = read(call.dc_n, d * B * H);
    a.dx = write(apart && d > 0 ? dx_of_reverse : call.dx);
    a.accumulate_dx = d > 0 && !apart;
    a.dh0 = write(call.dhx, d * B * P);
    a.dc0 = write(call.dcx, d * B * H);
    a.dw_ih = write(dw[0]);
    a.dw_hh = write(dw[1]);
    a.db_ih = has_biases ? write(dw[2]) : nullptr;
    a.db_hh = has_biases ? write(dw[3]) : nullptr;
    a.dw_hr = shape.projected ? write(dw[call.per_direction - 1]) : nullptr;
    a.workspace = write(workspace, work.begin(d));
  }
  work.run([&](const cpu::Team& some, int64_t d) { cpu::backward(params[d], work.plan, some); });
  if (apart) call.dx.add_(dx_of_reverse);
  return call.results();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) { m.impl("layer_backward", layer_backward_cpu); }

}  // namespace fusedrnn::ops

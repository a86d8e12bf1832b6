// A layer backward on a CPU: check, allocate, fill the parameters, call.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "cpu/halves.h"
#include "ops/check.h"
#include "ops/cpu/direction.h"
#include "ops/cut.h"
#include "ops/memory.h"
#include "ops/schema.h"

namespace fusedrnn::ops {
namespace {

void run(const BackwardCall& call) {
  const Problem& shape = call.problem;
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const int64_t width = call.reserve.size(2);
  if (B == 0) return;
  const cpu::Team workers = team();
  const cpu::Directions work(call.direction(0), int(D), workers, cpu::plan_backward);
  const Tensor workspace = workspace_of(work.bytes(), call.input.options());
  in_huge_pages(call.dx);
  // Summed apart whether or not the directions run at once: bits do not depend on threads.
  const bool apart = D == 2 && cpu::pairs_directions(shape) && call.dx.defined();
  const Tensor dx_of_reverse = apart ? in_huge_pages(at::empty_like(call.dx)) : Tensor();
  cpu::BackwardParams params[2]{};
  for (int64_t d = 0; d < D; ++d) {
    const DirectionWeights dw = call.dweights_of(d);
    cpu::BackwardParams& a = params[d];
    a = params_of<cpu::BackwardParams>(call, d, mutable_address(workspace, work.begin(d)));
    a.y = address(call.y, d * P);
    a.ldy = D * P;
    a.reserve = address(call.reserve, d * call.kept_rows * width);
    a.dy = address(call.dy, d * P);
    a.lddy = D * P;
    a.dh_n = address(call.dh_n, d * B * P);
    a.dc_n = address(call.dc_n, d * B * H);
    a.dc = address(call.dstates, d * H);
    a.lddc = D * H;
    a.dx = mutable_address(apart && d > 0 ? dx_of_reverse : call.dx);
    a.accumulate_dx = d > 0 && !apart;
    a.dh0 = mutable_address(call.dhx, d * B * P);
    a.dc0 = mutable_address(call.dcx, d * B * H);
    a.dreset_h = mutable_address(call.dreset_h, d * B * P);
    a.dreset_c = mutable_address(call.dreset_c, d * B * H);
    a.dw_ih = mutable_address(dw.w_ih);
    a.dw_hh = mutable_address(dw.w_hh);
    a.db_ih = mutable_address(dw.b_ih);
    a.db_hh = mutable_address(dw.b_hh);
    a.dw_hr = mutable_address(dw.w_hr);
  }
  work.run(
      [&](const cpu::Team& some, int64_t d) { work.plan.backward(params[d], work.plan, some); });
  if (apart) call.dx.add_(dx_of_reverse);
}

std::vector<Tensor> layer_backward_cpu(const Operands& o, const Cotangents& c) {
  const BackwardCall call = check_backward(o, c, Cuts::kInPlace, cpu::reserve_width);
  run_cut(call, [](const BackwardCall& cut) { run(cut); });
  return call.results();
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("layer_backward", layer_backward_op<layer_backward_cpu>);
}

}  // namespace fusedrnn::ops

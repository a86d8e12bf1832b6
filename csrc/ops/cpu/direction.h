// A direction of a layer as the CPU kernels take it, in so far as both passes take it alike.
#pragma once

#include "cpu/params.h"
#include "frozen/frozen.h"
#include "ops/check.h"

namespace fusedrnn::ops {

// The parameters of direction d, ForwardParams or BackwardParams, with all that the two share.
template <class Params>
Params params_of(const Call& call, int64_t d, void* workspace) {
  const DirectionWeights w = call.weights_of(d);
  Params a{};
  a.problem = call.direction(d);
  a.x = address(call.input);
  a.h0 = address(call.hx, d * a.problem.B * a.problem.P);
  a.c0 = address(call.cx, d * a.problem.B * a.problem.H);
  // One row for all, or one for each.
  const Tensor& reset = call.reset_h.defined() ? call.reset_h : call.reset_c;
  a.reset_rows = reset.defined() && reset.size(1) > 1;
  a.reset_h = address(call.reset_h, d * a.problem.P * (a.reset_rows ? a.problem.B : 1));
  a.reset_c = address(call.reset_c, d * a.problem.H * (a.reset_rows ? a.problem.B : 1));
  a.workspace = workspace;
  if (call.frozen.stack) {
    if constexpr (std::is_same_v<Params, cpu::ForwardParams>) {
      a.packed = call.frozen.stack->packed(call.frozen.layer, d);
    }
    return a;
  }
  a.w_ih = address(w.w_ih);
  a.w_hh = address(w.w_hh);
  a.b_ih = address(w.b_ih);
  a.b_hh = address(w.b_hh);
  a.w_hr = address(w.w_hr);
  return a;
}

}  // namespace fusedrnn::ops

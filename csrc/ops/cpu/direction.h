// A direction of a layer as the CPU kernels take it, in so far as both passes take it alike.
#pragma once

#include "cpu/params.h"
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
  a.w_ih = address(w.w_ih);
  a.w_hh = address(w.w_hh);
  a.b_ih = address(w.b_ih);
  a.b_hh = address(w.b_hh);
  a.w_hr = address(w.w_hr);
  a.workspace = workspace;
  return a;
}

}  // namespace fusedrnn::ops

// See cut.h.
#include "ops/cut.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

namespace fusedrnn::ops {
namespace {

// The call over segments: sizes, input and states.
Call inner_of(const Call& call) {
  const Segments& s = *call.segments;
  Call inner = call;
  inner.segments = nullptr;
  inner.hx = s.beginnings(call.hx, call.reset_h, call.D);
  inner.cx = s.beginnings(call.cx, call.reset_c, call.D);
  if (s.whole()) return inner;
  inner.input = s.packed(call.input);
  inner.problem.T = s.steps();
  inner.problem.B = s.size();
  inner.problem.packed = true;
  inner.offsets = s.offsets();
  return inner;
}

// No row has a step: the states are what they were given as.
LayerResult nothing_done(const Call& call) {
  const Problem& p = call.problem;
  const auto options = call.input.options();
  const bool has_c = spec(p.cell).has_c;
  const auto state = [&](const Tensor& given, int64_t columns) {
    return given.defined() ? given.clone() : at::zeros({call.D, p.B, columns}, options);
  };
  const auto steps = [&](int64_t columns) { return at::zeros({p.T, p.B, columns}, options); };
  const Tensor none = at::empty({0}, options);
  return {steps(call.D * p.P), state(call.hx, p.P), has_c ? state(call.cx, p.H) : none, none,
          call.states ? steps(call.D * p.H) : none};
}

}  // namespace

LayerResult run_cut(const Call& call, const std::function<LayerResult(const Call&)>& run) {
  if (!call.segments) return run(call);
  const Segments& s = *call.segments;
  if (s.empty()) {
    LayerResult result = nothing_done(call);
    // Its shape goes by the sizes alone.
    Call like = call;
    like.segments = nullptr;
    std::get<3>(result) = call.problem.training ? std::get<3>(run(like)) : std::get<3>(result);
    return result;
  }
  auto [y, h_n, c_n, reserve, states] = run(inner_of(call));
  const bool has_c = spec(call.problem.cell).has_c;
  return {s.padded(y), s.endings(h_n, call.hx), has_c ? s.endings(c_n, call.cx) : c_n, reserve,
          call.states ? s.padded(states) : states};
}

void run_cut(const BackwardCall& call, const std::function<void(const BackwardCall&)>& run) {
  if (!call.segments) return run(call);
  const Segments& s = *call.segments;
  for (const Tensor& state : {call.dhx, call.dcx}) {
    if (state.defined()) state.zero_();
  }
  BackwardCall inner = call;
  inner.dh_n = s.spread_endings(call.dh_n, call.dhx);
  inner.dc_n = s.spread_endings(call.dc_n, call.dcx);
  if (s.empty()) {
    if (call.dx.defined()) call.dx.zero_();
    for (const Tensor& dw : call.dweights) {
      if (dw.defined()) dw.zero_();
    }
    return;
  }
  static_cast<Call&>(inner) = inner_of(call);
  inner.y = s.packed(call.y);
  inner.dy = s.packed(call.dy);
  inner.dstates = s.packed(call.dstates);
  if (call.dx.defined() && !s.whole()) inner.dx = at::empty(inner.input.sizes(), call.dx.options());
  const auto slope = [](const Tensor& state, const Tensor& given, const Tensor& reset) {
    return given.defined() || reset.defined() ? at::empty(state.sizes(), state.options())
                                              : Tensor();
  };
  inner.dhx = slope(inner.hx, call.dhx, call.dreset_h);
  inner.dcx = slope(inner.cx, call.dcx, call.dreset_c);
  run(inner);
  if (call.dx.defined() && !s.whole()) s.put_padded(inner.dx, call.dx);
  if (inner.dhx.defined()) s.add_beginnings(inner.dhx, call.dhx, call.dreset_h);
  if (inner.dcx.defined()) s.add_beginnings(inner.dcx, call.dcx, call.dreset_c);
}

}  // namespace fusedrnn::ops

// See cut.h.
#include "ops/cut.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <utility>

#include "ops/memory.h"

namespace fusedrnn::ops {
namespace {

// Segments of rows that all go from the first step to the last.
std::shared_ptr<const Segments> whole(const Call& call) {
  return std::make_shared<Segments>(call.problem.T, call.problem.B, nullptr, nullptr);
}

// The call over segments: sizes, input and states; and what is cut among them.
Call inner_of(const Call& call, const Segments& s) {
  Call inner = call;
  inner.segments = nullptr;
  inner.resets = Tensor();
  const bool in_place = call.resets.defined();
  inner.hx = s.beginnings(call.hx, in_place ? Tensor() : call.reset_h, call.D);
  inner.cx = s.beginnings(call.cx, in_place ? Tensor() : call.reset_c, call.D);
  if (in_place) {
    for (int64_t d = 0; d < call.D; ++d) inner.cuts[d] = s.cuts(call.resets, d);
    inner.reset_h = s.sorted(call.reset_h);
    inner.reset_c = s.sorted(call.reset_c);
  }
  if (s.whole()) return inner;
  inner.input = s.packed(call.input);
  inner.problem.T = s.steps();
  inner.problem.B = s.size();
  inner.problem.packed = true;
  inner.inner = true;
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
  if (!call.segments && !call.resets.defined()) return run(call);
  const auto segments = call.segments ? call.segments : whole(call);
  const Segments& s = *segments;
  if (s.empty()) {
    LayerResult result = nothing_done(call);
    // Its shape goes by the sizes alone.
    Call like = call;
    like.segments = nullptr;
    like.resets = Tensor();
    std::get<3>(result) = call.problem.training ? std::get<3>(run(like)) : std::get<3>(result);
    return result;
  }
  auto [y, h_n, c_n, reserve, states] = run(inner_of(call, s));
  const bool has_c = spec(call.problem.cell).has_c;
  return {s.padded(y), s.endings(h_n, call.hx), has_c ? s.endings(c_n, call.cx) : c_n, reserve,
          call.states ? s.padded(states) : states};
}

void run_cut(const BackwardCall& call, const std::function<void(const BackwardCall&)>& run) {
  if (!call.segments && !call.resets.defined()) return run(call);
  const auto segments = call.segments ? call.segments : whole(call);
  const Segments& s = *segments;
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
  static_cast<Call&>(inner) = inner_of(call, s);
  inner.y = s.packed(call.y);
  inner.dy = s.packed(call.dy);
  inner.dstates = s.packed(call.dstates);
  if (call.dx.defined() && !s.whole())
    inner.dx = reused_empty(inner.input.sizes(), call.dx.options());
  const auto slope = [](const Tensor& state, const Tensor& given, const Tensor& reset) {
    const bool wanted = state.defined() && (given.defined() || reset.defined());
    return wanted ? at::empty(state.sizes(), state.options()) : Tensor();
  };
  const bool in_place = call.resets.defined();
  inner.dhx = slope(inner.hx, call.dhx, in_place ? Tensor() : call.dreset_h);
  inner.dcx = slope(inner.cx, call.dcx, in_place ? Tensor() : call.dreset_c);
  const auto of_rows = [&](const Tensor& wanted) {
    if (!wanted.defined()) return Tensor();
    return at::zeros({call.D, s.size(), wanted.size(2)}, wanted.options());
  };
  inner.dreset_h = in_place ? of_rows(call.dreset_h) : Tensor();
  inner.dreset_c = in_place ? of_rows(call.dreset_c) : Tensor();
  run(inner);
  if (call.dx.defined() && !s.whole()) s.put_padded(inner.dx, call.dx);
  if (inner.dhx.defined()) {
    s.add_beginnings(inner.dhx, call.dhx, in_place ? Tensor() : call.dreset_h);
  }
  if (inner.dcx.defined()) {
    s.add_beginnings(inner.dcx, call.dcx, in_place ? Tensor() : call.dreset_c);
  }
  if (in_place) {
    s.add_sorted(inner.dreset_h, call.dreset_h);
    s.add_sorted(inner.dreset_c, call.dreset_c);
  }
}

}  // namespace fusedrnn::ops

// The recurrence's launches as streams.h has to know of them: which memory a piece of a sequence
// reads and writes. In a namespace that csrc/ops/cuda finds before the kernels' own.
#pragma once

#include "cuda/params.h"
#include "streams.h"

namespace fusedrnn::ops::cuda {

using namespace ::fusedrnn::cuda;
using ::fusedrnn::cuda::Plan;  // there is one of the CPU kernels too

namespace launches {

// `width` elements of 4 bytes of each row that direction d has in the steps of a launch, rows
// `stride` elements apart.
inline glue::Access rows(const void* memory, const Problem& p, int d, bool descending,
                         int64_t begin, int64_t end, int64_t stride, int64_t width, bool writes) {
  if (!memory) return {nullptr, 0, writes};
  const bool last_first = (d == 1) != descending;
  const int64_t from = p.rows().offset(last_first ? p.T - end : begin);
  const int64_t to = p.rows().offset(last_first ? p.T - begin : end);
  return {static_cast<const char*>(memory) + from * stride * 4,
          ((to - from - 1) * stride + width) * 4, writes};
}

inline glue::Access state(const void* memory, const Problem& p, bool writes) {
  return {memory, memory ? p.B * p.H * 4 : 0, writes};
}

}  // namespace launches

inline int forward(const Forward& a, const Plan& plan, void* stream) {
  const Problem& p = a.problem;
  const int64_t H = p.H, S = slots_of(p.cell, p.training) * H;
  std::vector<glue::Access> accesses;
  for (int d = 0; d < a.directions; ++d) {
    const ForwardDirection& io = a.direction[d];
    const auto rows = [&](const void* memory, int64_t stride, int64_t width, bool writes) {
      return launches::rows(memory, p, d, false, a.begin, a.end, stride, width, writes);
    };
    for (const glue::Access& access :
         {rows(io.slots, S, S, p.training), rows(io.y, a.ldy, H, true), rows(io.c, a.ldc, H, true),
          launches::state(io.h0, p, false), launches::state(io.c0, p, false),
          launches::state(io.h_n, p, true), launches::state(io.c_n, p, true),
          glue::Access{io.w_hh, gates_of(p.cell) * H * H * 4, false}})
      accesses.push_back(access);
  }
  int error = 0;
  glue::Streams::all().issue(stream, "the recurrence", accesses,
                             [&] { error = ::fusedrnn::cuda::forward(a, plan, stream); });
  return error;
}

inline int backward(const Backward& a, const Plan& plan, void* stream) {
  const Problem& p = a.problem;
  const int64_t H = p.H, S = slots_of(p.cell, true) * H;
  std::vector<glue::Access> accesses;
  for (int d = 0; d < a.directions; ++d) {
    const BackwardDirection& io = a.direction[d];
    const auto rows = [&](const void* memory, int64_t stride, int64_t width, bool writes) {
      return launches::rows(memory, p, d, true, a.begin, a.end, stride, width, writes);
    };
    for (const glue::Access& access :
         {rows(io.slots, S, S, false), rows(io.c, H, H, false), rows(io.y, a.ldy, H, false),
          rows(io.dy, a.lddy, H, false), rows(io.dc, a.lddc, H, false), rows(io.dslots, S, S, true),
          launches::state(io.h0, p, false), launches::state(io.c0, p, false),
          launches::state(io.dh_n, p, false), launches::state(io.dc_n, p, false),
          launches::state(io.dh0, p, true), launches::state(io.dc0, p, true)})
      accesses.push_back(access);
  }
  int error = 0;
  glue::Streams::all().issue(stream, "the recurrence", accesses,
                             [&] { error = ::fusedrnn::cuda::backward(a, plan, stream); });
  return error;
}

inline int previous_h(const PreviousH& a, void* stream) {
  const int64_t N = a.problem.rows().total(), P = a.problem.P;
  const std::vector<glue::Access> accesses = {{a.y, ((N - 1) * a.ldy + P) * 4, false},
                                              {a.h, N * P * 4, true}};
  int error = 0;
  glue::Streams::all().issue(stream, "h of the steps before", accesses,
                             [&] { error = ::fusedrnn::cuda::previous_h(a, stream); });
  return error;
}

}  // namespace fusedrnn::ops::cuda

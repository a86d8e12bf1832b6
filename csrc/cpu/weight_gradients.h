// dW_ih, dW_hh, dW_hr and the bias gradients, a chunk of steps at a time. The gate gradients of a
// panel are one run of rows and serve as the vector side of the product; x and h are read by
// broadcast where they lie. Threads own columns of panels, so no two add to the same element.
#pragma once

#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/team.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

template <class T, class C, int kUnitVectors>
class WeightGradients {
 public:
  WeightGradients(const BackwardParams& params, const Geometry& g, const BackwardBuffers<T>& buf,
                  const Reserve<T>& keep)
      : a_(params), p_(params.problem), g_(g), buf_(buf), keep_(keep) {}

  // dW_hh begins from zeros: the first steps may have no h before them.
  void clear(int id, int n) {
    if (!a_.dw_hh) return;
    const Range mine = share(g_.panels * p_.P, id, n);
    std::fill(buf_.dw_hh + mine.begin * kDepth, buf_.dw_hh + mine.end * kDepth, T(0));
  }

  // Adds the i-th chunk to be done, whose gate gradients are at `grads`.
  void add(Range steps, int64_t i, const T* grads, int id, int n) {
    const int64_t first = p_.offset(steps.begin), size = p_.offset(steps.end) - first;
    const int64_t stride = size * kRow;
    const int64_t inputs = a_.dw_ih ? p_.I : 0, states = a_.dw_hh ? p_.P : 0;
    const int64_t columns = inputs + states;
    const Range mine = share(g_.panels * columns, id, n);
    for (int64_t at = mine.begin; at < mine.end;) {
      const int64_t panel = at / columns, from = at % columns;
      const int64_t to = std::min(columns, from + mine.end - at);
      const T* dgates = grads + panel * stride;
      if (from < inputs) {
        const Range range{from, std::min(to, inputs)};
        T* dw = buf_.dw_ih + (panel * p_.I + range.begin) * kDepth;
        multiply(static_cast<const T*>(a_.x) + first * p_.I, p_.I, range, dgates, size, i > 0, dw);
      }
      if (to > inputs) {
        const Range range{std::max(from, inputs) - inputs, to - inputs};
        previous_states(steps, range, dgates + kRecurrent, buf_.dw_hh + panel * p_.P * kDepth);
      }
      at += to - from;
    }
    if (a_.db_ih || a_.db_hh) biases(grads, stride, size, i > 0, share(g_.panels, id, n));
    if (a_.dw_hr) projection(first, size, i, share(p_.P, id, n));
  }

  void finish(int id, int n) {
    const Range panels = share(g_.panels, id, n);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      if (a_.dw_ih) {
        unpack_panel(p_, g_, Side::kInput, buf_.dw_ih, p_.I, static_cast<T*>(a_.dw_ih), panel);
      }
      if (a_.dw_hh) {
        unpack_panel(p_, g_, Side::kRecurrent, buf_.dw_hh, p_.P, static_cast<T*>(a_.dw_hh), panel);
      }
      if (a_.db_ih || a_.db_hh) {
        unpack_bias(p_, g_, buf_.dbias, static_cast<T*>(a_.db_ih), static_cast<T*>(a_.db_hh),
                    panel);
      }
    }
  }

 private:
  using V = Vec<T>;
  static constexpr int W = kLanes<T>;
  static constexpr int kSlots = C::kSlots * kUnitVectors, kVectors = C::kGates * kUnitVectors;
  static constexpr int64_t kRow = kSlots * W, kDepth = kVectors * W;
  static constexpr int64_t kRecurrent = (kSlots - kVectors) * W;

  // dw[columns][kDepth] (+)= rows' . dgates, over `count` rows with stride ld.
  void multiply(const T* rows, int64_t ld, Range columns, const T* dgates, int64_t count,
                bool accumulate, T* dw) {
    product<T, kVectors>({rows + columns.begin, 1, ld, 0, 1, count, dgates, kRow,
                          accumulate ? dw : nullptr, kDepth, dw, kDepth, columns.size(), W});
  }

  // h before each step of the chunk: runs of y one step away, and h0 where a sequence begins.
  void previous_states(Range steps, Range columns, const T* dgates, T* dw) {
    const T* y = static_cast<const T*>(a_.y);
    const T* h0 = static_cast<const T*>(a_.h0);
    dw += columns.begin * kDepth;
    const int64_t first = p_.offset(steps.begin);
    for (int64_t t = steps.begin; t < steps.end;) {
      const int64_t before = p_.reverse ? t + 1 : t - 1;
      const bool has_before = before >= 0 && before < p_.T;
      const T* at = dgates + (p_.offset(t) - first) * kRow;
      if (has_before && !p_.offsets) {  // rows of equal steps lie end to end
        const int64_t end = p_.reverse ? std::min(steps.end, p_.T - 1) : steps.end;
        multiply(y + before * p_.B * a_.ldy, a_.ldy, columns, at, (end - t) * p_.B, true, dw);
        t = end;
        continue;
      }
      const int64_t carried = has_before ? std::min(p_.rows(before), p_.rows(t)) : 0;
      if (carried > 0) {
        multiply(y + p_.offset(before) * a_.ldy, a_.ldy, columns, at, carried, true, dw);
      }
      if (h0 && p_.rows(t) > carried) {
        multiply(h0 + carried * p_.P, p_.P, columns, at + carried * kRow, p_.rows(t) - carried,
                 true, dw);
      }
      ++t;
    }
  }

  void biases(const T* grads, int64_t stride, int64_t size, bool accumulate, Range panels) {
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      V sum[kSlots];
      T* out = buf_.dbias + panel * kRow;
#pragma GCC unroll 4
      for (int v = 0; v < kSlots; ++v) sum[v] = V(T(0));
      const T* row = grads + panel * stride;
      for (int64_t r = 0; r < size; ++r, row += kRow) {
#pragma GCC unroll 4
        for (int v = 0; v < kSlots; ++v) sum[v] = sum[v] + V::load(row + v * W);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kSlots; ++v) {
        if (accumulate) sum[v] = sum[v] + V::load(out + v * W);
        sum[v].store(out + v * W);
      }
    }
  }

  // dW_hr[P, H] = dh' . hidden, straight into torch's layout.
  void projection(int64_t first, int64_t size, int64_t i, Range rows) {
    const int64_t width = round_up(p_.P, W);
    for (int64_t index = 0; index < groups_of(p_.H, W); ++index) {
      const Group group = group_of(p_.H, W, index);
      T* dw = static_cast<T*>(a_.dw_hr) + rows.begin * p_.H + group.column;
      product<T>(group.vectors, {buf_.dh_projected[i % 2] + rows.begin, 1, width, 0, 1, size,
                                 keep_.hidden + first * g_.width() + group.column, g_.width(),
                                 i > 0 ? dw : nullptr, p_.H, dw, p_.H, rows.size(), group.tail});
    }
  }

  const BackwardParams& a_;
  const Problem& p_;
  const Geometry& g_;
  const BackwardBuffers<T>& buf_;
  const Reserve<T>& keep_;
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

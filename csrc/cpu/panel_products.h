// Products of the inputs, and of h, with a panel of W_ih or W_hh, which give gates: as the plan has
// the weights read.
#pragma once

#include "cpu/gemm.h"
#include "cpu/weights.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

template <class T, int kVectors, int kSlots, class S>
class PanelProducts {
 public:
  PanelProducts(const ForwardParams& params, const Plan& plan, const Geometry& g,
                const PackedWeights<T>& weights)
      : a_(params), p_(params.problem), plan_(plan), g_(g), weights_(weights) {}

  // c[rows][vectors of a panel] = init + a . w' for some panels, where a is the inputs or h of the
  // step before. C and init are those of the first panel, the others' lie `stride` apart.
  struct Of {
    Range panels;
    bool back;  // from the last one to the first
    int64_t stride;
    const T* a;
    int64_t a_row;
    WordRows words;  // a as words
    const T* init;
    int64_t init_row;
    T* c;
    int64_t rows;
    bool far = false;  // nobody has read a yet, so it is beyond L2
  };
  FUSEDRNN_INLINE void multiply(Side side, Of p) const {
    if (sizeof(T) == 4 && plan_.narrow) return multiply_words(side, p);
    const int64_t by = p.back ? -1 : 1, begin = p.back ? p.panels.end - 1 : p.panels.begin;
    const int64_t first = (begin - p.panels.begin) * p.stride;
    p.init += first;
    p.c += first;
    for (int64_t i = 0; i < p.panels.size(); ++i, p.init += by * p.stride, p.c += by * p.stride) {
      multiply_panel(side, begin + by * i, begin + by * (i + 1), p);
    }
  }

 private:
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kRow = kSlots * W, kDepth = kVectors * W;

  // `next` comes after this one.
  FUSEDRNN_INLINE void multiply_panel(Side side, int64_t panel, int64_t next, const Of& p) const {
    const bool input = side == Side::kInput;
    const int64_t depth = input ? p_.I : p_.P;
    if constexpr (!std::is_same_v<S, T>) {
      if (!input && plan_.weights == WeightsRead::kPackedInPairs) {
        constexpr int64_t kPairs = paired(kVectors) * W;
        const auto* w = reinterpret_cast<const BFloat16Pair*>(weights_.recurrent.panels);
        return product<T, kVectors, BFloat16Pair>({.a = p.a,
                                                   .a_row = p.a_row,
                                                   .depth = depth,
                                                   .w = w + panel * depth * kPairs,
                                                   .w_k = kPairs,
                                                   .init = p.init,
                                                   .init_row = p.init_row,
                                                   .c = p.c,
                                                   .c_row = kRow,
                                                   .rows = p.rows});
      }
    }
    if (plan_.weights != WeightsRead::kInPlace) {
      const T* w = weights_.of(side).panels;
      const int64_t size = depth * kDepth;
      const bool beyond_l2 = g_.panels * size * int64_t(sizeof(T)) > kL2Bytes;
      return product<T, kVectors>({.a = p.a,
                                   .a_row = p.a_row,
                                   .depth = depth,
                                   .w = w + panel * size,
                                   .w_k = kDepth,
                                   .init = p.init,
                                   .init_row = p.init_row,
                                   .c = p.c,
                                   .c_row = kRow,
                                   .rows = p.rows,
                                   .far = p.far,
                                   .next = beyond_l2 ? w + next * size : nullptr});
    }
    const auto* w = static_cast<const S*>(input ? a_.w_ih : a_.w_hh);
    for (int v = 0; v < kVectors; ++v) {
      const GateRows gate = gate_rows(p_, g_, side, panel, v);
      dot_product<T, S>({.a = p.a,
                         .a_row = p.a_row,
                         .w = w + gate.row * depth,
                         .depth = depth,
                         .units = gate.lanes,
                         .init = p.init + v * W,
                         .init_row = p.init_row,
                         .c = p.c + v * W,
                         .c_row = kRow,
                         .rows = p.rows});
    }
  }

  void multiply_words(Side side, const Of& p) const {
    const auto& w = weights_.of(side);
    const int64_t depth = words_of(plan_.narrow->dtype, side == Side::kInput ? p_.I : p_.P);
    const int64_t count = p.panels.size(), first = p.back ? count - 1 : 0, by = p.back ? -1 : 1;
    const int64_t at = (p.panels.begin + first) * kDepth;
    const auto as_float = [](auto* values) { return reinterpret_cast<float*>(values); };
    NarrowProduct product{.a = p.words.words,
                          .a_row = p.words.row,
                          .depth = depth,
                          .w = w.words + at * depth,
                          .init = as_float(const_cast<T*>(p.init)) + first * p.stride,
                          .init_row = p.init_row,
                          .c = as_float(p.c) + first * p.stride,
                          .c_row = kRow,
                          .rows = p.rows,
                          .tail = W,
                          .at = {0, W, 2 * W, 3 * W},
                          .a_scale = p.words.scales,
                          .w_scale = w.scales + at,
                          .w_offset = w.offsets + at};
    for (int64_t i = 0; i < count; ++i) {
      plan_.narrow->product[kVectors - 1](product);
      product.w += by * kDepth * depth;
      product.init += by * p.stride;
      product.c += by * p.stride;
      product.w_scale += by * kDepth;
      product.w_offset += by * kDepth;
    }
  }

  const ForwardParams& a_;
  const Problem& p_;
  const Plan& plan_;
  const Geometry& g_;
  const PackedWeights<T>& weights_;
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

// Packs all weights of a direction for its forward pass, once a call or, frozen, once for all.
#pragma once

#include "cpu/pack.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// Words [first, first + n) of a row of `bytes` bytes, n at most a vector's lanes; zeros past its
// end.
inline Vec<float> load_row_words(const char* row, int64_t bytes, int64_t first, int n) {
  constexpr int W = kLanes<float>;
  Vec<float>::Ints words{};
  const int64_t left = bytes - first * 4;
  __builtin_memcpy(&words, row + first * 4, std::min<int64_t>(n == W ? W * 4 : n * 4, left));
  return Vec<float>(Vec<float>::Type(words));
}

// to[panel][word][depth] of the rows of one panel, which lie as bytes.
inline void pack_words(const Problem& p, const Geometry& g, Side side, const char* w,
                       int64_t row_bytes, uint32_t* to, int64_t panel) {
  constexpr int W = kLanes<float>;
  const int64_t words = (row_bytes + 3) / 4;
  for (int v = 0; v < g.vectors; ++v) {
    const GateRows rows = gate_rows(p, g, side, panel, v);
    auto* out = reinterpret_cast<float*>(to + panel * words * g.depth() + v * W);
    for (int64_t k = 0; k < words; k += W) {
      const int n = int(std::min<int64_t>(words - k, W));
      Vec<float> block[W];
      for (int i = 0; i < W; ++i) {
        block[i] = i < rows.lanes ? load_row_words(w + (rows.row + i) * row_bytes, row_bytes, k, n)
                                  : Vec<float>(0.0f);
      }
      transpose<float>(block);
      for (int i = 0; i < n; ++i) block[i].store(out + (k + i) * g.depth());
    }
  }
}

// The same of rows of float32, made narrow on the way.
inline void pack_narrowed(const Problem& p, const Geometry& g, Side side, const float* w, int64_t K,
                          const Narrow& narrow, uint32_t* to, int64_t panel) {
  constexpr int W = kLanes<float>;
  const int64_t words = words_of(narrow.dtype, K), numbers = per_word(narrow.dtype) * W;
  for (int v = 0; v < g.vectors; ++v) {
    const GateRows rows = gate_rows(p, g, side, panel, v);
    auto* out = reinterpret_cast<float*>(to + panel * words * g.depth() + v * W);
    for (int64_t k = 0; k < words; k += W) {
      const int n = int(std::min<int64_t>(words - k, W));
      alignas(64) uint32_t square[W][W] = {};
      const int64_t from = k * per_word(narrow.dtype);
      narrow.narrow({.from = w + rows.row * K + from,
                     .stride = K,
                     .rows = rows.lanes,
                     .n = std::min(K - from, numbers),
                     .to = square[0],
                     .to_stride = W,
                     .scales = nullptr});
      Vec<float> block[W];
      for (int i = 0; i < W; ++i) {
        block[i] = Vec<float>::load(reinterpret_cast<const float*>(square[i]));
      }
      transpose<float>(block);
      for (int i = 0; i < n; ++i) block[i].store(out + (k + i) * g.depth());
    }
  }
}

// The scales of a panel's rows of int8, and what kZero adds to their sums.
inline void pack_scales(const Problem& p, const Geometry& g, Side side, const Int8* w, int64_t K,
                        const float* scales, const PackedWeights<float>::OfSide& to,
                        int64_t panel) {
  for (int v = 0; v < g.vectors; ++v) {
    const GateRows rows = gate_rows(p, g, side, panel, v);
    const int64_t at = panel * g.depth() + v * g.lanes;
    for (int i = 0; i < g.lanes; ++i) {
      int32_t sum = 0;
      for (int64_t k = 0; i < rows.lanes && k < K; ++k) sum += w[(rows.row + i) * K + k].value;
      to.scales[at + i] = i < rows.lanes ? scales[rows.row + i] : 0.0f;
      to.offsets[at + i] = kZero * sum;
    }
  }
}

// One panel of W_ih or W_hh, as the plan has them read.
template <class T, class S>
void pack_side(const ForwardParams& a, const Plan& plan, const Geometry& g, Side side,
               const typename PackedWeights<T>::OfSide& to, int64_t panel) {
  const Problem& p = a.problem;
  const bool input = side == Side::kInput;
  const int64_t K = input ? p.I : p.P;
  const S* w = static_cast<const S*>(input ? a.w_ih : a.w_hh);
  if constexpr (std::is_same_v<S, Int8>) {
    pack_scales(p, g, side, w, K, input ? a.s_ih : a.s_hh, to, panel);
  }
  if constexpr (!std::is_same_v<S, T>) {
    if (plan.narrow) {
      return pack_words(p, g, side, reinterpret_cast<const char*>(w), K * int64_t(sizeof(S)),
                        to.words, panel);
    }
  }
  if constexpr (std::is_same_v<S, float>) {
    if (plan.narrow) {  // bfloat16: int8 comes as it is
      return pack_narrowed(p, g, side, w, K, *plan.narrow, to.words, panel);
    }
  }
  if constexpr (std::is_same_v<S, BFloat16>) {
    if (!input && plan.weights == WeightsRead::kPackedInPairs) {
      return pack_pairs(p, g, side, w, K, reinterpret_cast<BFloat16Pair*>(to.panels), panel);
    }
  }
  if constexpr (!std::is_same_v<S, Int8>) pack_panels(p, g, side, w, K, to.panels, panel);
}

// A thread's share of all weights; biases and W_hr are Others.
template <class T, class S, class Other>
void pack_weights(const ForwardParams& a, const Plan& plan, const Geometry& g,
                  const PackedWeights<T>& to, int id, int n) {
  const Problem& p = a.problem;
  const Range panels = share(g.panels, id, n);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    if (plan.weights != WeightsRead::kInPlace) {
      pack_side<T, S>(a, plan, g, Side::kInput, to.input, panel);
      pack_side<T, S>(a, plan, g, Side::kRecurrent, to.recurrent, panel);
    }
    pack_bias(p, g, static_cast<const Other*>(a.b_ih), static_cast<const Other*>(a.b_hh), to.bias,
              panel);
  }
  if (!p.projected) return;
  const Range groups = share(groups_of(p.P, g.lanes), id, n);
  for (int64_t i = groups.begin; i < groups.end; ++i) {
    pack_transposed(static_cast<const Other*>(a.w_hr), p.P, p.H, to.w_hr, i);
  }
}

// Back again: W_ih or W_hh in torch's rows.
template <class T, class S>
void unpack_side(const Problem& p, const Plan& plan, const Geometry& g, Side side,
                 const PackedWeights<T>& weights, S* to) {
  const auto& from = weights.of(side);
  const int64_t K = side == Side::kInput ? p.I : p.P;
  constexpr int64_t kEach = sizeof(S) < 4 ? 4 / sizeof(S) : 1;  // numbers of a word
  const auto value = [&](int64_t panel, int64_t lane, int64_t k) {
    if constexpr (sizeof(S) < 4) {
      if (plan.narrow) {
        const uint32_t* word =
            from.words + (panel * words_of(plan.narrow->dtype, K) + k / kEach) * g.depth();
        return reinterpret_cast<const S*>(word + lane)[k % kEach];
      }
    }
    return narrowed(from.panels[(panel * K + k) * g.depth() + lane], S());
  };
  for (int64_t panel = 0; panel < g.panels; ++panel) {
    for (int v = 0; v < g.vectors; ++v) {
      const GateRows rows = gate_rows(p, g, side, panel, v);
      for (int i = 0; i < rows.lanes; ++i) {
        for (int64_t k = 0; k < K; ++k) {
          to[(rows.row + i) * K + k] = value(panel, v * g.lanes + i, k);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

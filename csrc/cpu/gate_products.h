// Products of gate gradients with W_hh and W_ih, for dh and dx: the weights as these read them, and
// the products. The vectors are columns of W, in groups. Gate gradients of bfloat16 come as words
// along the gates, and a word of W is then of two of its rows.
#pragma once

#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/team.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// The cell is no parameter, so that both RNNs share one copy of this code.
template <class T, int kVectors, int kSlots>
class GateProducts {
 public:
  GateProducts(const BackwardParams& params, const Plan& plan, const Geometry& g,
               const BackwardBuffers<T>& buf)
      : a_(params), p_(params.problem), plan_(plan), g_(g), buf_(buf) {}

  // A thread's share of W_ih or W_hh.
  void pack(Side side, int id, int n) {
    const Weights w = weights(side);
    if (!in_place()) {
      const Range groups = share(groups_of(w.columns, W), id, n);
      for (int64_t i = groups.begin; i < groups.end; ++i) {
        const Group group = group_of(w.columns, W, i);
        if (narrow()) {
          pack_words(side, group);
        } else {
          pack_group(p_, g_, side, w.rows, w.columns, group, {0, g_.panels}, w.packed + at(group));
        }
      }
    } else if (w.columns % W) {
      pack_columns(w.rows, w.columns, group(side, groups(side) - 1),
                   share(gates_of(p_.cell) * p_.H, id, n), w.packed);
    }
  }

  // Columns that one product makes. Read in place, those that fill no vector come in a group of
  // their own, which is packed: a vector past the end of the last row would leave the tensor.
  int64_t groups(Side side) const {
    const int64_t columns = weights(side).columns;
    if (!in_place()) return groups_of(columns, W);
    return groups_of(columns / W * W, W) + (columns % W ? 1 : 0);
  }
  Group group(Side side, int64_t index) const {
    const int64_t columns = weights(side).columns, whole = columns / W * W;
    if (!in_place()) return group_of(columns, W, index);
    if (index < groups_of(whole, W)) return group_of(whole, W, index);
    return {whole, 1, int(columns - whole)};
  }

  // What multiply() makes and of what: `rows` rows of gate gradients, and the columns of C (and of
  // init) at a row stride of `ld`.
  struct Of {
    const T* grads;
    const uint32_t* words;  // the same in bfloat16, where products are of that
    int64_t panel_stride;   // of grads; of words half
    const T* init;          // null: zeros
    T* c;
    int64_t ld;
    int64_t rows;
    int tail;  // lanes of the last vector that exist in C
  };

  // c[rows][columns of a group] = init + dgates . W.
  void multiply(Side side, const Group& group, Of of) {
    if (narrow()) return multiply_words(side, group, of);
    if (side == Side::kRecurrent) of.grads += kRecurrent;
    if (in_place()) return multiply_in_place(side, group, of);
    const int64_t w_k = int64_t(group.vectors) * W, size = g_.panels * kDepth * w_k;
    const T* const packed = weights(side).packed + at(group);
    const bool beyond_l2 = groups(side) * size * int64_t(sizeof(T)) > kL2Bytes;
    product<T>(group.vectors, {.a = of.grads,
                               .a_row = kRow,
                               .a_block = of.panel_stride,
                               .blocks = g_.panels,
                               .depth = kDepth,
                               .w = packed,
                               .w_k = w_k,
                               .init = of.init,
                               .init_row = of.ld,
                               .c = of.c,
                               .c_row = of.ld,
                               .rows = of.rows,
                               .tail = of.tail,
                               .next = beyond_l2 ? packed + size : nullptr});
  }

 private:
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kRow = kSlots * W, kDepth = kVectors * W;
  static constexpr int64_t kRecurrent = (kSlots - kVectors) * W;

  bool in_place() const { return plan_.weights == WeightsRead::kInPlace; }
  bool narrow() const { return sizeof(T) == 4 && plan_.narrow; }

  // W_ih or W_hh: where torch keeps it, and its packed copy.
  struct Weights {
    const T* rows;
    int64_t columns;
    T* packed;
  };
  Weights weights(Side side) const {
    if (side == Side::kInput) return {static_cast<const T*>(a_.w_ih), p_.I, buf_.w_ih};
    return {static_cast<const T*>(a_.w_hh), p_.P, buf_.w_hh};
  }
  // Where the packed copy of a group begins.
  int64_t at(const Group& group) const { return group.column * g_.panels * kDepth; }
  uint32_t* words(Side side, const Group& group) const {
    return reinterpret_cast<uint32_t*>(weights(side).packed) + at(group) / 2;
  }

  // As pack_group, [panels][depth/2][columns of the group].
  void pack_words(Side side, const Group& group) {
    const Weights w = weights(side);
    const int64_t width = int64_t(group.vectors) * W, columns = width - W + group.tail;
    uint32_t* out = words(side, group);
    for (int64_t panel = 0; panel < g_.panels; ++panel) {
      for (int v = 0; v < g_.vectors; ++v, out += W / 2 * width) {
        const GateRows rows = gate_rows(p_, g_, side, panel, v);
        if (rows.lanes < W || columns < width) std::fill(out, out + W / 2 * width, 0);
        const auto* from = reinterpret_cast<const float*>(w.rows + rows.row * w.columns);
        from += group.column;
        for (int i = 0; i < rows.lanes; i += 2, from += 2 * w.columns) {
          const float* odd = i + 1 < rows.lanes ? from + w.columns : nullptr;
          plan_.narrow->pair(from, odd, columns, out + i / 2 * width);
        }
      }
    }
  }

  void multiply_words(Side side, const Group& group, const Of& of) {
    const int64_t first = side == Side::kRecurrent ? kRecurrent / 2 : 0;
    plan_.narrow->product[group.vectors - 1]({.a = of.words + first,
                                              .a_row = kRow / 2,
                                              .a_block = of.panel_stride / 2,
                                              .blocks = g_.panels,
                                              .depth = kDepth / 2,
                                              .w = words(side, group),
                                              .init = reinterpret_cast<const float*>(of.init),
                                              .init_row = of.ld,
                                              .c = reinterpret_cast<float*>(of.c),
                                              .c_row = of.ld,
                                              .rows = of.rows,
                                              .tail = of.tail,
                                              .at = {0, W, 2 * W, 3 * W}});
  }

  void multiply_in_place(Side side, const Group& group, Of of) {
    const Weights w = weights(side);
    const bool whole = group.tail == W;
    const T* from = whole ? w.rows + group.column : w.packed;
    const int64_t w_k = whole ? w.columns : W;
    const auto add = [&](const T* a, int64_t row, int64_t blocks, int64_t depth) {
      if (blocks * depth == 0) return;
      product<T>(group.vectors, {.a = a,
                                 .a_row = kRow,
                                 .a_block = of.panel_stride,
                                 .blocks = blocks,
                                 .depth = depth,
                                 .w = from + row * w_k,
                                 .w_k = w_k,
                                 .init = of.init,
                                 .init_row = of.ld,
                                 .c = of.c,
                                 .c_row = of.ld,
                                 .rows = of.rows,
                                 .tail = of.tail});
      of.init = of.c;
    };
    const int64_t full = g_.whole_panels(p_.H);
    const int64_t units = full * g_.units();
    for (int gate = 0; gate < gates_of(p_.cell); ++gate) {
      const int64_t row = gate_of_panel(p_, g_, side, 0, gate).row;
      const T* a = of.grads + gate * W;
      add(a, row, full, g_.units());
      add(a + full * of.panel_stride, row + units, 1, p_.H - units);
    }
  }

  const BackwardParams& a_;
  const Problem& p_;
  const Plan& plan_;
  const Geometry& g_;
  const BackwardBuffers<T>& buf_;
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

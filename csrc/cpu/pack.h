// Packs weights from torch's rows into panels, and puts weight gradients back. Vector u*G + i of a
// panel is one gate of units [panel*units + u*lanes, + lanes): that map stands here alone, for both
// ways.
#pragma once

#include "cpu/layout.h"
#include "cpu/simd.h"
#include "cpu/team.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// What a vector of a panel holds: rows of torch's [G*H, *] matrix from `row` on, `lanes` of them.
struct GateRows {
  int64_t row;
  int lanes;
};

// The gate whose product makes the i-th of a side's slots. GRU's slots n, r, z of the input side,
// for example, are torch's gates 2, 0, 1 (cells/gru.h).
inline int gate_of_slot(Cell cell, Side side, int i) {
  const CellSpec& of = spec(cell);
  const int8_t* slots = side == Side::kInput ? of.input_slot : of.recurrent_slot;
  const int slot = side == Side::kInput ? i : i + of.slots - of.gates;
  int gate = 0;
  while (slots[gate] != slot) ++gate;
  return gate;
}
constexpr bool has_runs_of_slots(const CellSpec& of) {
  for (int g = 0; g < of.gates; ++g) {
    if (of.input_slot[g] >= of.gates || of.recurrent_slot[g] < of.slots - of.gates) return false;
  }
  return true;
}
static_assert(true_of_all_cells(has_runs_of_slots));

inline GateRows gate_rows(const Problem& p, const Geometry& g, Side side, int64_t panel, int v) {
  const int gates = g.vectors / g.unit_vectors;
  const int gate = gate_of_slot(p.cell, side, v % gates);
  const int64_t unit = panel * g.units() + int64_t(v / gates) * g.lanes;
  const int64_t valid = std::clamp<int64_t>(p.H - unit, 0, g.lanes);
  return {gate * p.H + unit, int(valid)};
}

// All units of a gate that lie in a panel. Their slots are side by side in the panel's row, because
// a panel has several gates or several vectors of units, never both.
inline GateRows gate_of_panel(const Problem& p, const Geometry& g, Side side, int64_t panel,
                              int gate) {
  const int64_t row = gate_rows(p, g, side, panel, gate).row;
  return {row, int(std::clamp<int64_t>(p.H - panel * g.units(), 0, g.units()))};
}

// to[panel][k][depth] = w[G*H, K]' of one panel.
template <class T, class S>
void pack_panels(const Problem& p, const Geometry& g, Side side, const S* w, int64_t K, T* to,
                 int64_t panel) {
  constexpr int W = kLanes<T>;
  for (int v = 0; v < g.vectors; ++v) {
    const GateRows rows = gate_rows(p, g, side, panel, v);
    const S* from = w + rows.row * K;
    T* out = to + panel * K * g.depth() + v * W;
    int64_t k = 0;
    if (rows.lanes == W) {
      for (; k + W <= K; k += W) {
        Vec<T> block[W];
        for (int i = 0; i < W; ++i) block[i] = load_weights(from + i * K + k);
        transpose<T>(block);
        for (int i = 0; i < W; ++i) block[i].store(out + (k + i) * g.depth());
      }
    }
    for (; k < K; ++k) {
      for (int i = 0; i < W; ++i) {
        out[k * g.depth() + i] = i < rows.lanes ? widened(from[i * K + k]) : T(0);
      }
    }
  }
}

// The same of bfloat16, in pairs of vectors: to[panel][k][pairs].
inline void pack_pairs(const Problem& p, const Geometry& g, Side side, const BFloat16* w, int64_t K,
                       BFloat16Pair* to, int64_t panel) {
  constexpr int W = kLanes<float>;
  const int64_t row = paired(g.vectors) * W;
  for (int v = 0; v < g.vectors; v += 2) {
    BFloat16Pair* out = to + panel * K * row + v / 2 * W;
    for (int64_t k = 0; k < K; k += W) {
      const int n = int(std::min<int64_t>(K - k, W));
      Vec<float> block[2][W];
      for (int j = 0; j < 2; ++j) {
        const GateRows rows =
            v + j < g.vectors ? gate_rows(p, g, side, panel, v + j) : GateRows{0, 0};
        for (int i = 0; i < W; ++i) {
          block[j][i] =
              i < rows.lanes ? load_weights(w + (rows.row + i) * K + k, n) : Vec<float>(0.0f);
        }
        transpose<float>(block[j]);
      }
      for (int i = 0; i < n; ++i) store_pair(block[0][i], block[1][i], out + (k + i) * row);
    }
  }
}

// to[lanes][ld] = from[K][stride]': back again, one vector of a panel.
template <class T>
void unpack_vector(const T* from, int64_t stride, int64_t K, int lanes, T* to, int64_t ld) {
  constexpr int W = kLanes<T>;
  int64_t k = 0;
  if (lanes == W) {
    for (; k + W <= K; k += W) {
      Vec<T> block[W];
      for (int i = 0; i < W; ++i) block[i] = Vec<T>::load(from + (k + i) * stride);
      transpose<T>(block);
      for (int i = 0; i < W; ++i) block[i].store(to + i * ld + k);
    }
  }
  for (; k < K; ++k) {
    for (int i = 0; i < lanes; ++i) to[i * ld + k] = from[k * stride + i];
  }
}

// Columns [column, column + n) of a group, padded to whole vectors.
struct Group {
  int64_t column;
  int vectors;
  int tail;  // valid lanes of the last vector
};

inline Group group_of(int64_t columns, int lanes, int64_t index) {
  const int64_t column = index * kVectorsPerGroup * lanes;
  const int64_t n = std::min<int64_t>(columns - column, kVectorsPerGroup * lanes);
  const int vectors = int((n + lanes - 1) / lanes);
  return {column, vectors, int(n - (vectors - 1) * lanes)};
}

template <class T>
FUSEDRNN_INLINE void copy_row(const T* from, const Group& group, int valid_row, T* to) {
  for (int v = 0; v < group.vectors; ++v) {
    const int n = v == group.vectors - 1 ? group.tail : kLanes<T>;
    const auto x = valid_row ? Vec<T>::load(from + v * kLanes<T>, n) : Vec<T>(T(0));
    x.store(to + v * kLanes<T>);
  }
}

// A group of the columns of w[G*H, columns], for products with gate gradients: the rows that some
// panels hold, in the panels' order. Those rows are as far apart as rows of w, which no hardware
// fetches ahead. So each row fetches its counterpart of the next vector, and those of the last
// vector the next group's.
template <class T>
void pack_group(const Problem& p, const Geometry& g, Side side, const T* w, int64_t columns,
                const Group& group, Range panels, T* out) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    for (int v = 0; v < g.vectors; ++v) {
      const GateRows rows = gate_rows(p, g, side, panel, v);
      const bool last = v == g.vectors - 1, end = last && panel + 1 == panels.end;
      const GateRows next =
          gate_rows(p, g, side, end ? panels.begin : panel + (last ? 1 : 0), last ? 0 : v + 1);
      const int64_t next_column = group.column + (end ? group.vectors * g.lanes : 0);
      for (int i = 0; i < g.lanes; ++i, out += group.vectors * g.lanes) {
        for (int u = 0; u < group.vectors; ++u) {
          __builtin_prefetch(w + (next.row + i) * columns + next_column + u * g.lanes);
        }
        copy_row(w + (rows.row + i) * columns + group.column, group, i < rows.lanes, out);
      }
    }
  }
}

// A group of the columns of a plain matrix w[*, columns]: to[row][group] for the rows of a range.
template <class T>
void pack_columns(const T* w, int64_t columns, const Group& group, Range rows, T* to) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    copy_row(w + r * columns + group.column, group, true, to + r * group.vectors * kLanes<T>);
  }
}

// Rows of w[columns, depth] as a group of columns: W_hr, going forward.
template <class T, class S>
void pack_transposed(const S* w, int64_t columns, int64_t depth, T* to, int64_t index) {
  const Group group = group_of(columns, kLanes<T>, index);
  const int64_t width = group.vectors * kLanes<T>;
  T* out = to + group.column * depth;
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t i = 0; i < width; ++i) {
      const int64_t column = group.column + i;
      out[k * width + i] = column < columns ? widened(w[column * depth + k]) : T(0);
    }
  }
}

// [panel][row]: the sum of both biases where a gate's two slots are one; GRU keeps b_hn apart, in
// h_n's slot.
template <class T, class S>
void pack_bias(const Problem& p, const Geometry& g, const S* b_ih, const S* b_hh, T* to,
               int64_t panel) {
  T* out = to + panel * g.row();
  std::fill(out, out + g.row(), T(0));
  if (!b_ih) return;
  const int first_recurrent = g.slots - g.vectors;
  const auto add = [&](const S* bias, const GateRows& rows, int slot) {
    T* sum = out + slot * kLanes<T>;
    (Vec<T>::load(sum) + load_weights(bias + rows.row, rows.lanes)).store(sum);
  };
  for (int v = 0; v < g.vectors; ++v) {
    add(b_ih, gate_rows(p, g, Side::kInput, panel, v), v);
    add(b_hh, gate_rows(p, g, Side::kRecurrent, panel, v), v + first_recurrent);
  }
}

template <class T>
void unpack_bias(const Problem& p, const Geometry& g, const T* from, T* db_ih, T* db_hh,
                 int64_t panel) {
  const T* in = from + panel * g.row();
  const int first_recurrent = g.slots - g.vectors;
  for (int v = 0; v < g.vectors; ++v) {
    const GateRows input = gate_rows(p, g, Side::kInput, panel, v);
    for (int i = 0; db_ih && i < input.lanes; ++i) db_ih[input.row + i] = in[v * g.lanes + i];
    const GateRows rec = gate_rows(p, g, Side::kRecurrent, panel, v);
    for (int i = 0; db_hh && i < rec.lanes; ++i) {
      db_hh[rec.row + i] = in[(v + first_recurrent) * g.lanes + i];
    }
  }
}

// Rows of a [B, n] state into rows of a padded one, and back; null reads as zeros.
template <class T>
void pad_rows(const T* from, int64_t n, T* to, int64_t padded, Range rows) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    T* out = to + r * padded;
    if (from) std::copy(from + r * n, from + (r + 1) * n, out);
    std::fill(out + (from ? n : 0), out + padded, T(0));
  }
}
template <class T>
void unpad_rows(const T* from, int64_t padded, T* to, int64_t n, Range rows) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    std::copy(from + r * padded, from + r * padded + n, to + r * n);
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

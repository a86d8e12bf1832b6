// The mathematics in double, one sequence after the other and one unit after the other, forward and
// back by the chain rule: slow, and nothing of the kernels' order, packing, padding or rounding.
// The CUDA kernels are held to a recurrence as it is here, the CPU kernels to the layer that
// layer.h makes of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "model/problem.h"

namespace fusedrnn {

using Doubles = std::vector<double>;

// One direction of a layer without its product with x. A state, bias or gradient that is absent is
// empty and counts as zeros; so is w_hr where there is no projection. Slots are in torch's order of
// gates, GRU's and MGU's last one the recurrent part of n.
struct Recurrence {
  Doubles x;                 // [N, G*H]  x W_ih' + b_ih
  Doubles w_hh, b_hh, w_hr;  // [G*H, P], [G*H], [P, H]
  Doubles h0, c0;            // [B, P], [B, H]
  Doubles dy, dh_n, dc_n;    // [N, P], [B, P], [B, H]
  Doubles dc;                // [N, H]  of c of every step as a result
  Doubles y, c, slots;       // [N, P], [N, H], [N, S*H]
  Doubles h_n, c_n;          // [B, P], [B, H]
  Doubles dslots, dh0, dc0;  // [N, S*H], [B, P], [B, H]
  Doubles h_before, m, dh;   // [N, P], [N, H], [N, P]  h that a row was made from, h before the
                             // projection, and the whole gradient of y
};

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One unit: from both products, torch's slots, c and h.
inline double cell_forward(Cell cell, const double* x, const double* v, double h_prev, double& c,
                           double* slots) {
  if (cell == Cell::kLstm) {
    for (int g = 0; g < 4; ++g) slots[g] = g == 2 ? std::tanh(x[g] + v[g]) : sigmoid(x[g] + v[g]);
    c = slots[1] * c + slots[0] * slots[2];
    return slots[3] * std::tanh(c);
  }
  if (cell == Cell::kGru) {
    slots[0] = sigmoid(x[0] + v[0]);
    slots[1] = sigmoid(x[1] + v[1]);
    slots[2] = std::tanh(x[2] + slots[0] * v[2]);
    slots[3] = v[2];
    return (1 - slots[1]) * slots[2] + slots[1] * h_prev;
  }
  if (cell == Cell::kMgu) {
    slots[0] = sigmoid(x[0] + v[0]);
    slots[1] = std::tanh(x[1] + slots[0] * v[1]);
    slots[2] = v[1];
    return (1 - slots[0]) * h_prev + slots[0] * slots[1];
  }
  slots[0] = cell == Cell::kRnnTanh ? std::tanh(x[0] + v[0]) : std::max(x[0] + v[0], 0.0);
  return slots[0];
}

// And back: gradients of the slots, of c before, and what of dh reaches h before past the product.
inline double cell_backward(Cell cell, const double* s, double h_prev, double c_prev, double c,
                            double dh, double& dc, double* ds) {
  if (cell == Cell::kLstm) {
    const double tanh_c = std::tanh(c), d = dc + dh * s[3] * (1 - tanh_c * tanh_c);
    ds[0] = d * s[2] * s[0] * (1 - s[0]);
    ds[1] = d * c_prev * s[1] * (1 - s[1]);
    ds[2] = d * s[0] * (1 - s[2] * s[2]);
    ds[3] = dh * tanh_c * s[3] * (1 - s[3]);
    dc = d * s[1];
    return 0;
  }
  if (cell == Cell::kGru) {
    ds[2] = dh * (1 - s[1]) * (1 - s[2] * s[2]);
    ds[3] = ds[2] * s[0];
    ds[0] = ds[2] * s[3] * s[0] * (1 - s[0]);
    ds[1] = dh * (h_prev - s[2]) * s[1] * (1 - s[1]);
    return dh * s[1];
  }
  if (cell == Cell::kMgu) {
    ds[1] = dh * s[0] * (1 - s[1] * s[1]);
    ds[2] = ds[1] * s[0];
    ds[0] = (ds[1] * s[2] + dh * (s[1] - h_prev)) * s[0] * (1 - s[0]);
    return dh * (1 - s[0]);
  }
  ds[0] = cell == Cell::kRnnTanh ? dh * (1 - s[0] * s[0]) : s[0] > 0 ? dh : 0;
  return 0;
}

// Which slot's gradient is that of the recurrent product's gate g: where the cell keeps the
// recurrent part of a gate to itself, that is the last one.
inline int64_t product_slot(Cell cell, int64_t g) {
  const CellSpec& of = spec(cell);
  return of.input_slot[g] == of.recurrent_slot[g] ? g : of.slots - 1;
}

inline double at(const Doubles& values, int64_t index) {
  return values.empty() ? 0 : values[size_t(index)];
}

// A row of a matrix, zeros where the matrix is absent.
inline Doubles row_of(const Doubles& matrix, int64_t row, int64_t columns) {
  if (matrix.empty()) return Doubles(size_t(columns));
  return {matrix.begin() + row * columns, matrix.begin() + (row + 1) * columns};
}
inline void set_row(Doubles& matrix, int64_t row, const Doubles& values) {
  std::copy(values.begin(), values.end(), matrix.begin() + row * int64_t(values.size()));
}

// out += w x, with w [out, columns]; and going back out += w' d, with w [d, columns].
inline void add_product(const Doubles& w, const double* x, int64_t columns, Doubles& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const double* row = &w[i * size_t(columns)];
    double sum = 0;
    for (int64_t k = 0; k < columns; ++k) sum += row[k] * x[k];
    out[i] += sum;
  }
}
inline void add_transposed(const Doubles& w, const Doubles& d, int64_t columns, double* out) {
  for (size_t i = 0; i < d.size(); ++i) {
    const double* row = &w[i * size_t(columns)];
    for (int64_t k = 0; k < columns; ++k) out[k] += row[k] * d[i];
  }
}

// Sequence b forward over its rows, in the order in which they are taken; c before each of them.
inline std::vector<Doubles> forward_of(const Problem& p, int64_t b,
                                       const std::vector<int64_t>& rows, Recurrence& a) {
  const int64_t H = p.H, G = gates_of(p.cell), S = spec(p.cell).slots;
  Doubles h = row_of(a.h0, b, p.P), c = row_of(a.c0, b, H);
  std::vector<Doubles> c_before;
  for (const int64_t row : rows) {
    c_before.push_back(c);
    set_row(a.h_before, row, h);
    Doubles v = row_of(a.b_hh, 0, G * H), m(size_t(H), 0.0);
    add_product(a.w_hh, h.data(), p.P, v);
    for (int64_t j = 0; j < H; ++j) {
      double x_of[4], v_of[4], slots[4];
      for (int64_t g = 0; g < G; ++g) {
        x_of[g] = a.x[size_t((row * G + g) * H + j)];
        v_of[g] = v[size_t(g * H + j)];
      }
      // With a projection no cell reads h before it here: h has other units.
      const double h_prev = p.projected ? 0 : h[size_t(j)];
      m[size_t(j)] = cell_forward(p.cell, x_of, v_of, h_prev, c[size_t(j)], slots);
      for (int64_t s = 0; s < S; ++s) a.slots[size_t((row * S + s) * H + j)] = slots[s];
    }
    h = p.projected ? Doubles(size_t(p.P), 0.0) : m;
    if (p.projected) add_product(a.w_hr, m.data(), H, h);
    set_row(a.m, row, m);
    set_row(a.c, row, c);
    set_row(a.y, row, h);
  }
  set_row(a.h_n, b, h);
  set_row(a.c_n, b, c);
  return c_before;
}

inline void backward_of(const Problem& p, int64_t b, const std::vector<int64_t>& rows,
                        const std::vector<Doubles>& c_before, Recurrence& a) {
  const int64_t H = p.H, G = gates_of(p.cell), S = spec(p.cell).slots;
  Doubles dh = row_of(a.dh_n, b, p.P), dc = row_of(a.dc_n, b, H);
  for (size_t step = rows.size(); step-- > 0;) {
    const int64_t row = rows[step];
    for (int64_t i = 0; i < p.P; ++i) dh[size_t(i)] += at(a.dy, row * p.P + i);
    set_row(a.dh, row, dh);
    Doubles dm = p.projected ? Doubles(size_t(H), 0.0) : dh;
    if (p.projected) add_transposed(a.w_hr, dh, H, dm.data());
    Doubles dh_prev(size_t(p.P), 0.0), dv(size_t(G * H));
    for (int64_t j = 0; j < H; ++j) {
      const size_t u = size_t(j);
      double s[4], ds[4];
      for (int64_t i = 0; i < S; ++i) s[i] = a.slots[size_t((row * S + i) * H + j)];
      const double h_prev = p.projected ? 0 : a.h_before[size_t(row * H + j)];
      dc[u] += at(a.dc, row * H + j);
      const double past = cell_backward(p.cell, s, h_prev, c_before[step][u],
                                        a.c[size_t(row * H + j)], dm[u], dc[u], ds);
      if (!p.projected) dh_prev[u] += past;
      for (int64_t i = 0; i < S; ++i) a.dslots[size_t((row * S + i) * H + j)] = ds[i];
      for (int64_t g = 0; g < G; ++g) dv[size_t(g * H + j)] = ds[product_slot(p.cell, g)];
    }
    add_transposed(a.w_hh, dv, p.P, dh_prev.data());
    dh = dh_prev;
  }
  set_row(a.dh0, b, dh);
  set_row(a.dc0, b, dc);
}

// Fills everything from y on.
inline void recurrence(const Problem& p, bool reverse, Recurrence& a) {
  const int64_t N = p.rows().total(), S = spec(p.cell).slots;
  for (Doubles* to : {&a.y, &a.h_before, &a.dh}) to->assign(size_t(N * p.P), 0);
  for (Doubles* to : {&a.c, &a.m}) to->assign(size_t(N * p.H), 0);
  for (Doubles* to : {&a.slots, &a.dslots}) to->assign(size_t(N * S * p.H), 0);
  for (Doubles* to : {&a.h_n, &a.dh0}) to->assign(size_t(p.B * p.P), 0);
  for (Doubles* to : {&a.c_n, &a.dc0}) to->assign(size_t(p.B * p.H), 0);
  for (int64_t b = 0; b < p.B; ++b) {
    std::vector<int64_t> rows;
    for (int64_t t = 0; t < p.T && p.rows().active(t) > b; ++t)
      rows.push_back(p.rows().offset(t) + b);
    if (reverse) std::reverse(rows.begin(), rows.end());
    const std::vector<Doubles> c_before = forward_of(p, b, rows, a);
    backward_of(p, b, rows, c_before, a);
  }
}

}  // namespace fusedrnn

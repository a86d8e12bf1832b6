// A layer's tensors by name, and what they hold in the end: the recurrence of reference.h with the
// products around it.
#pragma once

#include <array>
#include <vector>

#include "reference.h"

namespace fusedrnn {

// What goes into a layer, and from kY on what comes out.
// clang-format off
enum Name {
  kX, kH0, kC0, kWIh, kWHh, kBIh, kBHh, kWHr, kDy, kDhN, kDcN,
  kY, kHN, kCN, kDx, kDh0, kDc0, kDwIh, kDwHh, kDbIh, kDbHh, kDwHr, kNames
};
// clang-format on
constexpr const char* kNameOf[] = {
    "x", "h0",  "c0",  "w_ih", "w_hh", "b_ih", "b_hh",  "w_hr",  "dy",    "dh_n",  "dc_n",
    "y", "h_n", "c_n", "dx",   "dh0",  "dc0",  "dw_ih", "dw_hh", "db_ih", "db_hh", "dw_hr"};

// An empty one is a null pointer.
template <class T>
using Tensors = std::array<std::vector<T>, kNames>;

inline int64_t elements(const Problem& p, Name name) {
  const int64_t N = p.rows().total(), gates = gates_of(p.cell) * p.H, hr = p.projected * p.P * p.H;
  const int64_t h = p.B * p.P, c = spec(p.cell).has_c * p.B * p.H;
  const int64_t w_ih = gates * p.I, w_hh = gates * p.P, x = N * p.I, y = N * p.P;
  return std::array<int64_t, kNames>{
      x, h, c, w_ih, w_hh, gates, gates, hr,   y,     h,     c,
      y, h, c, x,    h,    c,     w_ih,  w_hh, gates, gates, hr}[name];
}

// dw += d x', with w [d, columns].
inline void add_outer(const Doubles& d, const double* x, int64_t columns, Doubles& dw) {
  for (size_t i = 0; i < d.size(); ++i) {
    double* row = &dw[i * size_t(columns)];
    for (int64_t k = 0; k < columns; ++k) row[k] += d[i] * x[k];
  }
}

// Fills y, h_n, c_n and adds to the gradients; here no tensor of the problem is empty.
inline void layer(const Problem& p, Tensors<double>& a) {
  const int64_t N = p.rows().total(), H = p.H, G = gates_of(p.cell), S = spec(p.cell).slots;
  Recurrence r;
  for (int64_t row = 0; row < N; ++row) {
    Doubles u = a[kBIh];
    add_product(a[kWIh], &a[kX][row * p.I], p.I, u);
    r.x.insert(r.x.end(), u.begin(), u.end());
  }
  r.w_hh = a[kWHh], r.b_hh = a[kBHh], r.w_hr = a[kWHr], r.h0 = a[kH0], r.c0 = a[kC0];
  r.dy = a[kDy], r.dh_n = a[kDhN], r.dc_n = a[kDcN];
  recurrence(p, p.reverse, r);

  a[kY] = r.y, a[kHN] = r.h_n, a[kDh0] = r.dh0;
  if (spec(p.cell).has_c) a[kCN] = r.c_n, a[kDc0] = r.dc0;
  for (int64_t row = 0; row < N; ++row) {
    Doubles du(G * H), dv(G * H);
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t j = 0; j < H; ++j) {
        du[g * H + j] = r.dslots[(row * S + g) * H + j];
        dv[g * H + j] = r.dslots[(row * S + product_slot(p.cell, g)) * H + j];
      }
    }
    add_transposed(a[kWIh], du, p.I, &a[kDx][row * p.I]);
    add_outer(du, &a[kX][row * p.I], p.I, a[kDwIh]);
    add_outer(dv, &r.h_before[row * p.P], p.P, a[kDwHh]);
    for (int64_t i = 0; i < G * H; ++i) a[kDbIh][i] += du[i], a[kDbHh][i] += dv[i];
    if (p.projected) add_outer(row_of(r.dh, row, p.P), &r.m[row * H], H, a[kDwHr]);
  }
}

}  // namespace fusedrnn

// The layers in double, one sequence after the other and one unit after the other, forward and back
// by the chain rule: slow, and nothing of the kernels' order, packing or rounding.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "cpu/params.h"

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
  const int64_t h = p.B * p.P, c = (p.cell == Cell::kLstm) * p.B * p.H;
  const int64_t w_ih = gates * p.I, w_hh = gates * p.P, x = N * p.I, y = N * p.P;
  return std::array<int64_t, kNames>{
      x, h, c, w_ih, w_hh, gates, gates, hr,   y,     h,     c,
      y, h, c, x,    h,    c,     w_ih,  w_hh, gates, gates, hr}[name];
}

using Vector = std::vector<double>;

inline void add_product(const Vector& w, const double* x, int64_t columns, Vector& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    double sum = 0;
    for (int64_t k = 0; k < columns; ++k) sum += w[i * columns + k] * x[k];
    out[i] += sum;
  }
}
// The same product going back: dw += d x' and dx += w' d.
inline void add_gradients(const Vector& d, const Vector& w, const double* x, int64_t columns,
                          Vector& dw, double* dx) {
  for (size_t i = 0; i < d.size(); ++i) {
    for (int64_t k = 0; k < columns; ++k) {
      dw[i * columns + k] += d[i] * x[k];
      dx[k] += w[i * columns + k] * d[i];
    }
  }
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A step of one sequence: u = W_ih x + b_ih, v = W_hh h + b_hh, and m = h before the projection.
struct Step {
  int64_t row;
  Vector u, v, h_prev, c_prev, c, m;
};

inline void cell(const Problem& p, Step& s) {
  for (int64_t j = 0; j < p.H; ++j) {
    const auto a = [&](int64_t gate) { return s.u[gate * p.H + j] + s.v[gate * p.H + j]; };
    if (p.cell == Cell::kLstm) {
      s.c[j] = sigmoid(a(1)) * s.c_prev[j] + sigmoid(a(0)) * std::tanh(a(2));
      s.m[j] = sigmoid(a(3)) * std::tanh(s.c[j]);
    } else if (p.cell == Cell::kGru) {
      const double n = std::tanh(s.u[2 * p.H + j] + sigmoid(a(0)) * s.v[2 * p.H + j]);
      s.m[j] = (1 - sigmoid(a(1))) * n + sigmoid(a(1)) * s.h_prev[j];
    } else {
      s.m[j] = p.cell == Cell::kRnnTanh ? std::tanh(a(0)) : std::max(a(0), 0.0);
    }
  }
}

// From dm and dc: the gradients of u and v, of c before, and of h before as the cell itself sees
// it.
inline void cell_back(const Problem& p, const Step& s, const Vector& dm, Vector& dc, Vector& du,
                      Vector& dv, Vector& dh) {
  for (int64_t j = 0; j < p.H; ++j) {
    const auto at = [&](int64_t gate) { return gate * p.H + j; };
    const auto a = [&](int64_t gate) { return s.u[at(gate)] + s.v[at(gate)]; };
    const auto give = [&](int64_t gate, double d) { du[at(gate)] = dv[at(gate)] = d; };
    if (p.cell == Cell::kLstm) {
      const double i = sigmoid(a(0)), f = sigmoid(a(1)), g = std::tanh(a(2)), o = sigmoid(a(3));
      const double tanh_c = std::tanh(s.c[j]), d = dc[j] + dm[j] * o * (1 - tanh_c * tanh_c);
      give(0, d * g * i * (1 - i));
      give(1, d * s.c_prev[j] * f * (1 - f));
      give(2, d * i * (1 - g * g));
      give(3, dm[j] * tanh_c * o * (1 - o));
      dc[j] = d * f;
    } else if (p.cell == Cell::kGru) {
      const double r = sigmoid(a(0)), z = sigmoid(a(1)), v = s.v[at(2)];
      const double n = std::tanh(s.u[at(2)] + r * v), dn = dm[j] * (1 - z) * (1 - n * n);
      give(0, dn * v * r * (1 - r));
      give(1, dm[j] * (s.h_prev[j] - n) * z * (1 - z));
      du[at(2)] = dn;
      dv[at(2)] = dn * r;
      dh[j] = dm[j] * z;
    } else {
      give(0, p.cell == Cell::kRnnTanh ? dm[j] * (1 - s.m[j] * s.m[j]) : s.m[j] > 0 ? dm[j] : 0);
    }
  }
}

inline Vector row_of(const Vector& matrix, int64_t row, int64_t columns) {
  if (matrix.empty()) return Vector(columns);
  return {matrix.begin() + row * columns, matrix.begin() + (row + 1) * columns};
}
inline void set_row(Vector& matrix, int64_t row, const Vector& values) {
  if (!matrix.empty())
    std::copy(values.begin(), values.end(), matrix.begin() + row * values.size());
}

// Fills y, h_n, c_n and adds to the gradients; here no tensor of the problem is empty.
inline void reference(const Problem& p, Tensors<double>& a) {
  const int64_t gates = gates_of(p.cell) * p.H;
  for (int64_t b = 0; b < p.B; ++b) {
    std::vector<Step> steps;
    for (int64_t t = 0; t < p.T && p.rows().active(t) > b; ++t)
      steps.emplace_back().row = p.rows().offset(t) + b;
    if (p.reverse) std::reverse(steps.begin(), steps.end());

    Vector h = row_of(a[kH0], b, p.P), c = row_of(a[kC0], b, p.H);
    for (Step& s : steps) {
      s = {s.row, a[kBIh], a[kBHh], h, c, c, Vector(p.H)};
      add_product(a[kWIh], &a[kX][s.row * p.I], p.I, s.u);
      add_product(a[kWHh], h.data(), p.P, s.v);
      cell(p, s);
      c = s.c;
      h = p.projected ? Vector(p.P) : s.m;
      if (p.projected) add_product(a[kWHr], s.m.data(), p.H, h);
      set_row(a[kY], s.row, h);
    }
    set_row(a[kHN], b, h);
    set_row(a[kCN], b, c);

    Vector dh = row_of(a[kDhN], b, p.P), dc = row_of(a[kDcN], b, p.H);
    for (auto s = steps.rbegin(); s != steps.rend(); ++s) {
      for (int64_t i = 0; i < p.P; ++i) dh[i] += a[kDy][s->row * p.P + i];
      Vector dm = p.projected ? Vector(p.H) : dh, du(gates), dv(gates);
      if (p.projected) add_gradients(dh, a[kWHr], s->m.data(), p.H, a[kDwHr], dm.data());
      dh.assign(p.P, 0);
      cell_back(p, *s, dm, dc, du, dv, dh);
      add_gradients(du, a[kWIh], &a[kX][s->row * p.I], p.I, a[kDwIh], &a[kDx][s->row * p.I]);
      add_gradients(dv, a[kWHh], s->h_prev.data(), p.P, a[kDwHh], dh.data());
      for (int64_t i = 0; i < gates; ++i) a[kDbIh][i] += du[i], a[kDbHh][i] += dv[i];
    }
    set_row(a[kDh0], b, dh);
    set_row(a[kDc0], b, dc);
  }
}

}  // namespace fusedrnn

// The recurrence in double, one sequence after the other and one unit after the other, forward and
// back by the chain rule: nothing of the kernels' order, padding or rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/params.h"

namespace fusedrnn::cuda {

using Doubles = std::vector<double>;

// One direction of a layer. An absent state or gradient is empty, and counts as zeros.
struct Recurrence {
  Doubles x;                 // [N, G*H]  x W_ih' + b_ih
  Doubles w_hh, b_hh;        // [G*H, H], [G*H]
  Doubles h0, c0;            // [B, H]
  Doubles dy, dh_n, dc_n;    // [N, H], [B, H]
  Doubles y, c, slots;       // [N, H], [N, H], [N, S*H] as backward wants them
  Doubles h_n, c_n;          // [B, H]
  Doubles dslots, dh0, dc0;  // [N, S*H], [B, H]
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
  ds[0] = cell == Cell::kRnnTanh ? dh * (1 - s[0] * s[0]) : s[0] > 0 ? dh : 0;
  return 0;
}

// Which slot's gradient is that of the product's gate g.
inline int64_t product_slot(Cell cell, int64_t g) { return cell == Cell::kGru && g == 2 ? 3 : g; }

inline double at(const Doubles& values, int64_t index) {
  return values.empty() ? 0 : values[size_t(index)];
}

inline void reference(const Problem& p, bool reverse, Recurrence& a) {
  const int64_t N = p.rows().total(), H = p.H, G = gates_of(p.cell), S = slots_of(p.cell, true);
  for (Doubles* to : {&a.y, &a.c}) to->assign(size_t(N * H), 0);
  for (Doubles* to : {&a.slots, &a.dslots}) to->assign(size_t(N * S * H), 0);
  for (Doubles* to : {&a.h_n, &a.c_n, &a.dh0, &a.dc0}) to->assign(size_t(p.B * H), 0);
  for (int64_t b = 0; b < p.B; ++b) {
    std::vector<int64_t> rows;
    for (int64_t t = 0; t < p.T && p.rows().active(t) > b; ++t)
      rows.push_back(p.rows().offset(t) + b);
    if (reverse) std::reverse(rows.begin(), rows.end());

    const auto initial = [&](const Doubles& from) {
      Doubles state(size_t(H), 0);
      for (int64_t j = 0; j < H; ++j) state[size_t(j)] = at(from, b * H + j);
      return state;
    };
    Doubles h = initial(a.h0), c = initial(a.c0);
    std::vector<Doubles> h_before, c_before;
    for (const int64_t row : rows) {
      h_before.push_back(h);
      c_before.push_back(c);
      for (int64_t j = 0; j < H; ++j) {
        double x[4], v[4], slots[4];
        for (int64_t g = 0; g < G; ++g) {
          const double* w = &a.w_hh[size_t((g * H + j) * H)];
          x[g] = a.x[size_t((row * G + g) * H + j)];
          v[g] = at(a.b_hh, g * H + j);
          for (int64_t k = 0; k < H; ++k) v[g] += w[k] * h_before.back()[size_t(k)];
        }
        const size_t u = size_t(j);
        h[u] = cell_forward(p.cell, x, v, h_before.back()[u], c[u], slots);
        a.y[size_t(row * H + j)] = h[u];
        a.c[size_t(row * H + j)] = c[u];
        for (int64_t s = 0; s < S; ++s) a.slots[size_t((row * S + s) * H + j)] = slots[s];
      }
    }
    std::copy(h.begin(), h.end(), a.h_n.begin() + b * H);
    std::copy(c.begin(), c.end(), a.c_n.begin() + b * H);

    Doubles dh = initial(a.dh_n), dc = initial(a.dc_n);
    for (size_t step = rows.size(); step-- > 0;) {
      const int64_t row = rows[step];
      Doubles dh_prev(size_t(H), 0);
      for (int64_t j = 0; j < H; ++j) {
        const size_t u = size_t(j);
        double s[4], ds[4];
        for (int64_t i = 0; i < S; ++i) s[i] = a.slots[size_t((row * S + i) * H + j)];
        dh_prev[u] +=
            cell_backward(p.cell, s, h_before[step][u], c_before[step][u], a.c[size_t(row * H + j)],
                          dh[u] + at(a.dy, row * H + j), dc[u], ds);
        for (int64_t i = 0; i < S; ++i) a.dslots[size_t((row * S + i) * H + j)] = ds[i];
        for (int64_t g = 0; g < G; ++g) {
          const double* w = &a.w_hh[size_t((g * H + j) * H)];
          for (int64_t k = 0; k < H; ++k) dh_prev[size_t(k)] += w[k] * ds[product_slot(p.cell, g)];
        }
      }
      dh = dh_prev;
    }
    std::copy(dh.begin(), dh.end(), a.dh0.begin() + b * H);
    std::copy(dc.begin(), dc.end(), a.dc0.begin() + b * H);
  }
}

}  // namespace fusedrnn::cuda

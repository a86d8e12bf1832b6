// The two ways by which the kernels run a recurrence: a persistent kernel at one launch, and a
// kernel for each step with the products, which are the caller's, made here.
#pragma once

#include <vector>

#include "cuda/params.h"
#include "problem.h"

namespace fusedrnn::cuda {

// Memory of one direction, in the kernels' precision.
template <class T>
struct Tensors {
  Buffer<T> slots, w_hh, b_hh, h0, c0, c, h_n, c_n, dc, dh_n, dc_n, dslots, dh0, dc0;
  T *y, *dy;  // in what all directions share
};

// c[m, n] (+)= a[m, k] b[n, k]', or b[k, n] if not transposed.
template <class T>
void product(const T* a, const T* b, T* c, int64_t m, int64_t n, int64_t k, int64_t lda,
             bool transposed, bool add) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      T sum = add ? c[i * n + j] : T(0);
      for (int64_t l = 0; l < k; ++l)
        sum += a[i * lda + l] * (transposed ? b[j * k + l] : b[l * n + j]);
      c[i * n + j] = sum;
    }
  }
}

struct Walk {  // over the steps in the order they are taken, or back
  int64_t row, rows, row_before, rows_before;
};
inline std::vector<Walk> walk(const Problem& p, bool reverse) {
  std::vector<Walk> steps;
  for (int64_t i = 0; i < p.T; ++i) {
    const int64_t t = reverse ? p.T - 1 - i : i, before = reverse ? t + 1 : t - 1;
    const Rows rows = p.rows();
    steps.push_back({rows.offset(t), rows.active(t), i ? rows.offset(before) : 0,
                     i ? rows.active(before) : 0});
  }
  return steps;
}

template <class T>
int stepwise_forward(const Problem& p, bool reverse, Tensors<T>& a, int64_t ldy) {
  const int64_t H = p.H, G = gates_of(p.cell), S = slots_of(p.cell, p.training);
  Buffer<T> h(p.B, H, 0), c(p.B, H, 0);
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t j = 0; j < H; ++j) {
      h(b, j) = a.h0.data() ? a.h0(b, j) : T(0);
      c(b, j) = a.c0.data() ? a.c0(b, j) : T(0);
    }
  }
  bool known_zero = !a.h0.data();  // then the first step has no product
  int error = 0;
  for (const Walk& step : walk(p, reverse)) {
    Buffer<T> hw(step.rows, G * H, 0);
    product(h.data(), a.w_hh.data(), hw.data(), step.rows, G * H, H, H, true, false);
    StepForward params{p,
                       step.rows,
                       a.slots.data() + step.row * S * H,
                       known_zero ? nullptr : hw.data(),
                       a.b_hh.data(),
                       h.data(),
                       spec(p.cell).has_c ? c.data() : nullptr,
                       a.y + step.row * ldy,
                       ldy,
                       a.c.data() ? a.c.data() + step.row * a.c.stride() : nullptr,
                       a.c.stride()};
    error |= step_forward(params, nullptr);
    known_zero = false;
  }
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t j = 0; j < H; ++j) {
      a.h_n(b, j) = h(b, j);
      if (spec(p.cell).has_c) a.c_n(b, j) = c(b, j);
    }
  }
  return error;
}

template <class T>
int stepwise_backward(const Problem& p, bool reverse, Tensors<T>& a, int64_t ldy, int64_t lddy) {
  const int64_t H = p.H, G = gates_of(p.cell), S = slots_of(p.cell, true);
  const bool has_c = spec(p.cell).has_c, parted = S > G;  // a gate whose parts go two ways
  Buffer<T> dh(p.B, H, 0), dc(p.B, H, 0);
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t j = 0; j < H; ++j) {
      dh(b, j) = a.dh_n.data() ? a.dh_n(b, j) : T(0);
      dc(b, j) = a.dc_n.data() ? a.dc_n(b, j) : T(0);
    }
  }
  const std::vector<Walk> steps = walk(p, reverse);
  int error = 0;
  for (size_t i = steps.size(); i-- > 0;) {
    const Walk& step = steps[i];
    Buffer<T> dhw(step.rows, G * H, 0);
    T* const dslots = a.dslots.data() + step.row * S * H;
    StepBackward params{p,
                        step.rows,
                        a.slots.data() ? a.slots.data() + step.row * S * H : nullptr,
                        has_c ? a.c.data() + step.row * H : nullptr,
                        has_c && i ? a.c.data() + step.row_before * H : nullptr,
                        a.c0.data(),
                        a.y + step.row * ldy,
                        i ? a.y + step.row_before * ldy : nullptr,
                        a.h0.data(),
                        ldy,
                        step.rows_before,
                        a.dy ? a.dy + step.row * lddy : nullptr,
                        lddy,
                        a.dc.data() ? a.dc.data() + step.row * a.dc.stride() : nullptr,
                        a.dc.stride(),
                        dh.data(),
                        has_c ? dc.data() : nullptr,
                        dslots,
                        parted ? dhw.data() : dslots};
    error |= step_backward(params, nullptr);
    const T* const d = parted ? dhw.data() : dslots;
    product(d, a.w_hh.data(), dh.data(), step.rows, H, G * H, G * H, false, true);
  }
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t j = 0; j < H; ++j) {
      if (a.dh0.data()) a.dh0(b, j) = dh(b, j);
      if (a.dc0.data()) a.dc0(b, j) = dc(b, j);
    }
  }
  return error;
}

}  // namespace fusedrnn::cuda

// The value type under which csrc/cells run on a GPU: one element a thread. In float the
// activations are two instructions of the special function unit each, in double the library's.
#pragma once

#include <cmath>

#include "cells/math.h"
#include "cuda/primitives.cuh"

namespace fusedrnn::cuda {

template <class T>
struct Scalar {
  T v;
  Scalar() = default;
  FUSEDRNN_DEVICE constexpr Scalar(T value) : v(value) {}

  friend FUSEDRNN_DEVICE Scalar operator+(Scalar a, Scalar b) { return a.v + b.v; }
  friend FUSEDRNN_DEVICE Scalar operator-(Scalar a, Scalar b) { return a.v - b.v; }
  friend FUSEDRNN_DEVICE Scalar operator*(Scalar a, Scalar b) { return a.v * b.v; }
};

FUSEDRNN_DEVICE Scalar<float> madd(Scalar<float> a, Scalar<float> b, Scalar<float> c) {
  return fmaf(a.v, b.v, c.v);
}
FUSEDRNN_DEVICE Scalar<double> madd(Scalar<double> a, Scalar<double> b, Scalar<double> c) {
  return fma(a.v, b.v, c.v);
}
// Not a maximum: that would lose nan, which torch.nn's relu lets through.
template <class T>
FUSEDRNN_DEVICE Scalar<T> relu(Scalar<T> x) {
  return x.v < T(0) ? T(0) : x.v;
}
template <class T>
FUSEDRNN_DEVICE Scalar<T> where_positive(Scalar<T> x, Scalar<T> value) {
  return x.v <= T(0) ? T(0) : value.v;
}

constexpr float kLog2E = 1.44269504088896341f;

// Near 0, where 1 - 2 / (1 + e^2x) would cancel, an odd polynomial: 1.9 ulp up to 0.6.
FUSEDRNN_DEVICE float tanh_near_zero(float x) {
  const float square = x * x;
  float p = fmaf(1.564048231e-2f, square, -5.223110691e-2f);
  p = fmaf(p, square, 1.331352144e-1f);
  p = fmaf(p, square, -3.333262205e-1f);
  return fmaf(x * square, p, x);
}

// sigmoid(x), or tanh(x): for a lane that holds one gate and learns which at run time.
FUSEDRNN_DEVICE Scalar<float> activate(bool use_tanh, Scalar<float> x) {
  const float e = exp2_fast(x.v * (use_tanh ? 2.0f * kLog2E : -kLog2E));
  const float share = reciprocal_fast(1.0f + e);
  const float far = use_tanh ? fmaf(-2.0f, share, 1.0f) : share;
  return choose(use_tanh && fabsf(x.v) < 0.55f, tanh_near_zero(x.v), far);
}
FUSEDRNN_DEVICE Scalar<float> sigmoid(Scalar<float> x) { return activate(false, x); }
FUSEDRNN_DEVICE Scalar<float> tanh(Scalar<float> x) { return activate(true, x); }

FUSEDRNN_DEVICE Scalar<double> sigmoid(Scalar<double> x) { return 1.0 / (1.0 + ::exp(-x.v)); }
FUSEDRNN_DEVICE Scalar<double> tanh(Scalar<double> x) { return ::tanh(x.v); }

}  // namespace fusedrnn::cuda

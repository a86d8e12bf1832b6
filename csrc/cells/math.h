// exp-based activations over a value type V: a float on any device, or a SIMD vector.
//
// V has + - * / and a constructor from float (broadcast); by argument-dependent lookup it has
//   madd(a, b, c) = a*b + c    nearest(x)      round to an integer, |x| < 2^22
//   exp2_int(n) = 2^n, n integral in [-127, 128], giving 0 and infinity at the ends
//   clamp(x, lo, hi), which lets nan through    copy_sign(magnitude, sign)    abs(x)
// Error in fp32, over all finite inputs: sigmoid 2.0 ulp, tanh 2.1 ulp (tests/test_activations.py).
#pragma once

namespace fusedrnn {

// e^y = 2^n * (1 + p), |y| <= 89. The polynomial is the degree-6 minimax fit on [-ln2/2, ln2/2].
template <class V>
struct Exp {
  V n, p;
};

template <class V>
inline Exp<V> exp_parts(V y) {
  const V n = nearest(y * V(1.44269504088896341f));
  V r = madd(n, V(-0.693359375f), y);
  r = madd(n, V(2.12194440e-4f), r);
  V q = V(1.9875691500e-4f);
  q = madd(q, r, V(1.3981999507e-3f));
  q = madd(q, r, V(8.3334519073e-3f));
  q = madd(q, r, V(4.1665795894e-2f));
  q = madd(q, r, V(1.6666665459e-1f));
  q = madd(q, r, V(5.0000001201e-1f));
  return {n, madd(r * r, q, r)};
}

// 1 / (1 + e^-x). The clamp reaches infinity on one side, so that sigmoid(-inf) is exactly 0.
template <class V>
inline V sigmoid(V x) {
  const Exp<V> e = exp_parts(clamp(V(0.0f) - x, V(-88.0f), V(89.0f)));
  const V one(1.0f);
  return one / (one + exp2_int(e.n) * (one + e.p));
}

// With m = e^(-2|x|) - 1, tanh|x| = -m / (m + 2); m keeps its relative accuracy near 0.
template <class V>
inline V tanh(V x) {
  const Exp<V> e = exp_parts(clamp(abs(x) * V(-2.0f), V(-20.0f), V(0.0f)));
  const V scale = exp2_int(e.n);
  const V m = madd(scale, e.p, scale - V(1.0f));
  return copy_sign((V(0.0f) - m) / (m + V(2.0f)), x);
}

}  // namespace fusedrnn

// exp-based activations over a value type V: a float on any device, or a SIMD vector.
//
// V has + - * / and a constructor from float (broadcast); by argument-dependent lookup it has
//   madd(a, b, c) = a*b + c    nearest(x)      round to an integer, |x| < 2^22
//   exp2_int(n) = 2^n, n integral in [-127, 127], giving 0 at -127
//   divide(a, b) = a / b to 1 ulp, b finite and not 0
//   at_least(x, low), at_most(x, high), letting nan through    relu(x)
//   zero_below(x, low, value) = x < low ? 0 : value    where_positive(x, value) = x <= 0 ? 0 :
//   value copy_sign(magnitude, sign)    abs(x)
// Error in fp32 over every 97th float: sigmoid 2.4 ulp, tanh 2.3 ulp (tests/test_activations.py).
#pragma once

#ifdef __CUDACC__
#define FUSEDRNN_CELL __device__ __forceinline__
#else
#define FUSEDRNN_CELL inline
#endif

namespace fusedrnn {

// e^y = 2^n * (1 + p), |y| <= 89. The polynomial is the degree-6 minimax fit on [-ln2/2, ln2/2].
template <class V>
struct Exp {
  V n, p;
};

template <class V>
FUSEDRNN_CELL Exp<V> exp_parts(V y) {
  const V n = nearest(y * V(1.44269504088896341f));
  V r = madd(n, V(-0.693359375f), y);
  r = madd(n, V(2.12194440e-4f), r);
  // In pairs, not Horner's chain: a row of a cell waits for five of these, one after the other.
  const V r2 = r * r;
  const V high = madd(V(1.9875691500e-4f), r, V(1.3981999507e-3f));
  const V middle = madd(V(8.3334519073e-3f), r, V(4.1665795894e-2f));
  const V low = madd(V(1.6666665459e-1f), r, V(5.0000001201e-1f));
  return {n, madd(madd(madd(high, r2, middle), r2, low), r2, r)};
}

// 1 / (1 + e^-x). The clamp keeps the divisor finite; what lies below every normal is 0.
template <class V>
FUSEDRNN_CELL V sigmoid(V x) {
  const Exp<V> e = exp_parts(at_most(at_least(V(0.0f) - x, V(-88.0f)), V(88.0f)));
  const V one(1.0f);
  return zero_below(x, V(-88.0f), divide(one, one + exp2_int(e.n) * (one + e.p)));
}

// With t = e^(-2|x|), tanh|x| is (1 - t) / (1 + t), whose numerator keeps its relative accuracy
// near 0, and from 0.55 on 1 - 2 t / (1 + t), whose error shrinks with t. All that backward has of
// a saturated unit is 1 - tanh^2, so that rounding decides: the first form alone errs 3 times as
// much as torch.nn there, this no more.
template <class V>
FUSEDRNN_CELL V tanh(V x) {
  const V size = abs(x), one(1.0f);
  const Exp<V> e = exp_parts(at_least(size * V(-2.0f), V(-20.0f)));
  const V scale = exp2_int(e.n), near = zero_below(V(0.55f), size, one);  // 1 near 0, else 0
  const V top = madd(scale, e.p, scale - near);                           // t - 1 near 0, else t
  const V quotient = divide(top, top + (one + near));
  return copy_sign(madd(quotient, near - V(2.0f), one - near), x);
}

}  // namespace fusedrnn

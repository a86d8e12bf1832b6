// The instructions of AVX-512 that the kernels name, each computed lane by lane. Included between
// FUSEDRNN_BEGIN_TARGET("avx2,fma") and a variant's own source.
#pragma once

namespace {

template <class V, class F>
inline V by_lane(F f) {
  V result;
  for (size_t i = 0; i < sizeof(V) / sizeof(result[0]); ++i) result[i] = f(i);
  return result;
}

inline float reciprocal_of_14_bits(float x) {
  float r = 1 / x;
  uint32_t bits;
  __builtin_memcpy(&bits, &r, sizeof r);
  bits &= 0xfffffe00;
  __builtin_memcpy(&r, &bits, sizeof r);
  return r;
}

template <class Element>
void store_by_lane(Element* to, unsigned mask, const auto& from) {
  for (size_t i = 0; mask >> i; ++i) {
    if (mask >> i & 1) to[i] = from[i];
  }
}

}  // namespace

#define _mm512_fmadd_ps(a, b, c)                                            \
  by_lane<__m512>([x = __m512(a), y = __m512(b), z = __m512(c)](size_t i) { \
    return __builtin_fmaf(x[i], y[i], z[i]);                                \
  })
#define _mm512_fmadd_pd(a, b, c)                                                \
  by_lane<__m512d>([x = __m512d(a), y = __m512d(b), z = __m512d(c)](size_t i) { \
    return __builtin_fma(x[i], y[i], z[i]);                                     \
  })
// The second operand where one is nan.
#define _mm512_max_ps(a, b) \
  by_lane<__m512>([x = __m512(a), y = __m512(b)](size_t i) { return x[i] > y[i] ? x[i] : y[i]; })
#define _mm512_min_ps(a, b) \
  by_lane<__m512>([x = __m512(a), y = __m512(b)](size_t i) { return x[i] < y[i] ? x[i] : y[i]; })
#define _mm512_rcp14_ps(a) \
  by_lane<__m512>([x = __m512(a)](size_t i) { return reciprocal_of_14_bits(x[i]); })
#define _mm512_maskz_loadu_ps(mask, from) \
  by_lane<__m512>([m = unsigned(mask), p = from](size_t i) { return m >> i & 1 ? p[i] : 0.0f; })
#define _mm512_maskz_loadu_pd(mask, from) \
  by_lane<__m512d>([m = unsigned(mask), p = from](size_t i) { return m >> i & 1 ? p[i] : 0.0; })
#define _mm512_mask_storeu_ps(to, mask, from) store_by_lane(to, mask, from)
#define _mm512_mask_storeu_pd(to, mask, from) store_by_lane(to, mask, from)

typedef int32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
#define _mm512_cvtepu16_epi32(a) by_lane<Words>([x = Halves(a)](size_t i) { return int32_t(x[i]); })
#define _mm512_slli_epi32(a, n) (a << n)

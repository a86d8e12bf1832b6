// The same of AVX512-BF16, after by_lane_avx512.h.
#pragma once

namespace {

inline float from_bfloat16(uint32_t bits) {
  bits <<= 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof x);
  if (x != x) return uint16_t(bits >> 16 | 0x40);
  if ((bits & 0x7f800000) == 0) return uint16_t(bits >> 16 & 0x8000);  // denormals
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

typedef uint16_t AllHalves __attribute__((vector_size(64)));
#define _mm512_dpbf16_ps(c, a, b)                                                              \
  by_lane<__m512>([z = __m512(c), x = ::Words(a), y = ::Words(b)](size_t i) {                  \
    const auto low = [](int32_t w) { return from_bfloat16(uint32_t(w) & 0xffff); };            \
    const auto high = [](int32_t w) { return from_bfloat16(uint32_t(w) >> 16); };              \
    return __builtin_fmaf(low(x[i]), low(y[i]), __builtin_fmaf(high(x[i]), high(y[i]), z[i])); \
  })
#define _mm512_cvtne2ps_pbh(a, b)                                    \
  by_lane<AllHalves>([high = __m512(a), low = __m512(b)](size_t i) { \
    return to_bfloat16(i < 16 ? low[i] : high[i - 16]);              \
  })
#define _mm512_cvtneps_pbh(a) \
  by_lane<::Halves>([x = __m512(a)](size_t i) { return to_bfloat16(x[i]); })
#define _mm512_permutexvar_epi16(order, a) \
  by_lane<AllHalves>([n = AllHalves(order), x = AllHalves(a)](size_t i) { return x[n[i]]; })

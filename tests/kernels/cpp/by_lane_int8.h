// The instructions of AVX-512 that products of int8 without VNNI name, each computed lane by lane.
// Included after by_lane_avx512.h.
#pragma once

namespace {

typedef int8_t SignedBytes __attribute__((vector_size(64)));
typedef uint8_t UnsignedBytes __attribute__((vector_size(64)));
typedef int16_t Shorts __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));

template <class T>
inline T saturated(int x) {
  constexpr int most = sizeof(T) == 1 ? 127 : 32767;
  return T(x > most ? most : x < -most - 1 ? -most - 1 : x);
}
// Each 16 bytes: those of a, then those of b.
template <class To, class From>
inline To saturated_in_turn(From a, From b) {
  constexpr size_t half = 16 / sizeof(a[0]);
  return by_lane<To>([=](size_t i) {
    const size_t part = i / (2 * half), at = i % (2 * half);
    const int x = at < half ? a[part * half + at] : b[part * half + at - half];
    return saturated<std::decay_t<decltype(To()[0])>>(x);
  });
}

}  // namespace

#define _mm512_set1_epi16(x) (Shorts{} + int16_t(x))
#define _mm512_setzero_si512() (Longs{})
#define _mm512_maddubs_epi16(a, b)                                                \
  by_lane<Shorts>([x = UnsignedBytes(a), y = SignedBytes(b)](size_t i) {          \
    return saturated<int16_t>(x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]); \
  })
#define _mm512_madd_epi16(a, b)                               \
  by_lane<::Words>([x = Shorts(a), y = Shorts(b)](size_t i) { \
    return x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]; \
  })
#define _mm512_packs_epi32(a, b) saturated_in_turn<Shorts>(::Words(a), ::Words(b))
#define _mm512_packs_epi16(a, b) saturated_in_turn<SignedBytes>(Shorts(a), Shorts(b))
#define _mm512_sad_epu8(a, b)                                                               \
  by_lane<Longs>([x = UnsignedBytes(a), y = UnsignedBytes(b)](size_t i) {                   \
    int64_t sum = 0;                                                                        \
    for (size_t at = 8 * i; at < 8 * i + 8; ++at) sum += std::abs(int(x[at]) - int(y[at])); \
    return sum;                                                                             \
  })

// Rows of A as int8, for the instruction set of this translation unit: each with a scale of its
// own, by which its greatest magnitude becomes 127.
#pragma once

#include "cpu/isa/narrow_int8.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

typedef int8_t Bytes __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));

FUSEDRNN_INLINE Words greater(Words a, Words b) {
  const Words takes_a = a > b;
  return (a & takes_a) | (b & ~takes_a);
}

// The greatest magnitude; nan where there is an infinity or nan. Bits of magnitudes are ordered as
// their values are, and those of infinities and nans come after all.
FUSEDRNN_INLINE float greatest_of(const float* from, int64_t n) {
  using V = Vec<float>;
  constexpr int W = kLanes<float>;
  constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
  Words most{};
  int64_t i = 0;
  for (; i + W <= n; i += W) most = greater(Words(V::load(from + i).v) & kMagnitude, most);
  if (i < n) most = greater(Words(V::load(from + i, int(n - i)).v) & kMagnitude, most);
  const auto swapped = swap_halves<float>(V::Type(most), std::make_index_sequence<W>());
  most = greater(Words(swapped), most);
  int32_t bits = 0;
  for (int lane = 0; lane < W / 2; ++lane) bits = std::max(bits, int32_t(most[lane]));
  if (bits >= kInfinity) return __builtin_nanf("");
  float greatest;
  __builtin_memcpy(&greatest, &bits, sizeof greatest);
  return greatest;
}

// Four vectors of integers, as bytes in their order.
FUSEDRNN_INLINE Bytes bytes_of(const Words (&from)[4]) {
#if defined(__SSE2__)
#if FUSEDRNN_AVX512
  const auto low = _mm512_packs_epi32(__m512i(from[0]), __m512i(from[1])),
             high = _mm512_packs_epi32(__m512i(from[2]), __m512i(from[3]));
  const auto packed = Vec<float>::Type(_mm512_packs_epi16(low, high));
#elif FUSEDRNN_AVX2
  const auto low = _mm256_packs_epi32(__m256i(from[0]), __m256i(from[1])),
             high = _mm256_packs_epi32(__m256i(from[2]), __m256i(from[3]));
  const auto packed = Vec<float>::Type(_mm256_packs_epi16(low, high));
#else
  const auto low = _mm_packs_epi32(__m128i(from[0]), __m128i(from[1])),
             high = _mm_packs_epi32(__m128i(from[2]), __m128i(from[3]));
  const auto packed = Vec<float>::Type(_mm_packs_epi16(low, high));
#endif
  // They pack each 16 bytes by themselves.
  constexpr int kParts = kLanes<float> / 4;
  return [&]<size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
    return Bytes(shuffle<float, (I % kParts * 4 + I / kParts)...>(packed, packed));
  }(std::make_index_sequence<kLanes<float>>());
#else
  typedef int8_t Quarter __attribute__((vector_size(kLanes<float>)));
  Bytes bytes{};
  for (int v = 0; v < 4; ++v) {
    const Quarter part = __builtin_convertvector(from[v], Quarter);
    __builtin_memcpy(reinterpret_cast<char*>(&bytes) + v * sizeof part, &part, sizeof part);
  }
  return bytes;
#endif
}

// Adding and taking away this rounds a float to the nearest integer, ties to even.
constexpr float kRounds = 12582912.0f;  // 1.5 * 2^23

// Numbers of a row times `inverse`, rounded; zeros from `left` numbers on.
FUSEDRNN_INLINE Bytes rounded(const float* from, int64_t left, float inverse) {
  using V = Vec<float>;
  constexpr int W = kLanes<float>;
  Words integers[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v, left -= W) {
    V scaled = left >= W ? V::load(from + v * W) : V::load(from + v * W, int(left > 0 ? left : 0));
    scaled = scaled * V(inverse);
    FUSEDRNN_KEEP(scaled.v);  // rounded by itself on machines with FMA too
    integers[v] = Words((scaled + V(kRounds)).v) - Words(V(kRounds).v);
  }
  return bytes_of(integers);
}

// Rounds rows: store(row, k, bytes, count) takes W words of a row from word k on, of which so many
// are there.
template <class Store>
FUSEDRNN_INLINE void round_rows(const WideRows& rows, const Store& store) {
  constexpr int W = kLanes<float>;
  const int64_t words = words_of(DType::kInt8, rows.n);
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* from = rows.from + r * rows.stride;
    const float greatest = greatest_of(from, rows.n);
    // Of numbers this small the inverse is infinite: they are zero.
    const bool tiny = greatest < 1e-36f;
    const float inverse = tiny ? 0.0f : 127.0f / greatest;
    rows.scales[r] = tiny ? 0.0f : greatest / 127.0f;
    for (int64_t k = 0; k < words; k += W) {
      const Bytes bytes = rounded(from + 4 * k, rows.n - 4 * k, inverse);
      store(r, k, bytes, int(words - k < W ? words - k : W));
    }
  }
}

// With kZero added to each.
inline void narrow_rows(const WideRows& rows) {
  round_rows(rows,
             [&](int64_t r, int64_t k, Bytes bytes, int count) __attribute__((always_inline)) {
               auto* to = reinterpret_cast<float*>(rows.to + r * rows.to_stride + k);
               Vec<float>(Vec<float>::Type(bytes ^ int8_t(kZero))).store(to, count);
             });
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

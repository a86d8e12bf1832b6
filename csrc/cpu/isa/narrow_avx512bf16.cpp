// bfloat16 by AVX512-BF16: x86-64 servers from Cooper Lake (2020) and Zen 4 (2022) on.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16")
#ifndef __clang__
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC's own intrinsics, as in kernels_avx512
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define FUSEDRNN_ISA avx512bf16
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#include "cpu/isa/narrow_tile.h"

namespace fusedrnn::cpu::avx512bf16 {
namespace {

struct Format {
  using Sums = Vec<float>::Type;
  static FUSEDRNN_INLINE Words factor(uint32_t word) { return int32_t(word) - Words{}; }
  static FUSEDRNN_INLINE void add(Sums& sums, Words factor, Words w) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(factor), "v"(w));
  }
  static FUSEDRNN_INLINE Vec<float> result(Sums sums, const NarrowProduct&, int64_t, int,
                                           Vec<float> init) {
    return Vec<float>(sums) + init;
  }
};

// To nearest, ties to even, by the instruction, which makes zeros of denormals.
void narrow_rows(const WideRows& rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float* from = rows.from + r * rows.stride;
    uint32_t* to = rows.to + r * rows.to_stride;
    int64_t i = 0;
    for (; i + 32 <= rows.n; i += 32) {
      const __m512bh both =
          _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i));
      __builtin_memcpy(to + i / 2, &both, 64);
    }
    for (; i < rows.n; i += 16) {
      const int lanes = int(rows.n - i < 16 ? rows.n - i : 16), words = (lanes + 1) / 2;
      const __m256bh half = _mm512_cvtneps_pbh(__m512(Vec<float>::load(from + i, lanes).v));
      __builtin_memcpy(to + i / 2, &half, words * 4);
    }
  }
}

FUSEDRNN_INLINE __m512 part_of(const float* row, int64_t i, int lanes) {
  return __m512(row ? Vec<float>::load(row + i, lanes).v : Vec<float>(0.0f).v);
}

void pair_rows(const float* low, const float* high, int64_t n, uint32_t* to) {
  using V = Vec<float>;
  // The low row is the lower half of what the instruction makes of both.
  const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t i = 0; i < n; i += 16) {
    const int lanes = int(n - i < 16 ? n - i : 16);
    const __m512bh both = _mm512_cvtne2ps_pbh(part_of(high, i, lanes), part_of(low, i, lanes));
    const __m512i words = _mm512_permutexvar_epi16(turns, __m512i(both));
    V(V::Type(words)).store(reinterpret_cast<float*>(to + i), lanes);
  }
}

}  // namespace

const Narrow& table() {
  static const Narrow kTable =
      table<Format>("avx512_bf16", DType::kBFloat16, narrow_rows, pair_rows);
  return kTable;
}

}  // namespace fusedrnn::cpu::avx512bf16
FUSEDRNN_END_TARGET

#endif

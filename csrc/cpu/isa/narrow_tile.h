// The register tile of products of narrow numbers, for the instruction set of this translation
// unit. A format F says what a word's products are added to and by which instruction:
//
//   Sums                              a vector of sums
//   factor(a, k)                      word k of a row of A for all lanes, as add() takes it
//   add(sums, factor, w)              adds its products with a vector of words of W
//   Rest(p)                           what result() has of the product
//   result(rest, sums, row, v, init)  init and the sums of vector v, in float32
#pragma once

#include "cpu/gemm.h"
#include "cpu/narrow.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

using Words = Vec<float>::Ints;

FUSEDRNN_INLINE Words load_words(const uint32_t* p) {
  return Words(Vec<float>::load(reinterpret_cast<const float*>(p)).v);
}

FUSEDRNN_INLINE Words splat(uint32_t word) { return int32_t(word) - Words{}; }

// One word of each row.
template <class F, int NV, int R>
FUSEDRNN_INLINE void add_words(typename F::Sums (&acc)[R][NV], const uint32_t* const (&a)[R],
                               int64_t k, const uint32_t* w) {
  Words x[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    x[v] = load_words(w + v * kLanes<float>);
    FUSEDRNN_KEEP(x[v]);  // one load for all rows, as in gemm.h
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const auto factor = F::factor(a[r], k);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) F::add(acc[r][v], factor, x[v]);
  }
}

template <int NV, int R>
FUSEDRNN_INLINE void fetch_tile(const NarrowProduct& p, const float* rows, int64_t stride) {
  for (int r = 0; r < R; ++r, rows += stride) {
    for (int v = 0; v < NV; ++v) __builtin_prefetch(rows + p.at[v], 1);
  }
}

template <class F, int NV, int R>
__attribute__((noinline)) void narrow_tile(const NarrowProduct& p, int64_t row) {
  constexpr int W = kLanes<float>;
  using V = Vec<float>;
  typename F::Sums acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = typename F::Sums{};

  float* c = p.c + row * p.c_row;
  const float* init = p.init ? p.init + row * p.init_row : nullptr;
  fetch_tile<NV, R>(p, c, p.c_row);  // C is on its way while K passes, as in gemm.h
  if (init && init != c) fetch_tile<NV, R>(p, init, p.init_row);

  const uint32_t* w = p.w;
  for (int64_t block = 0; block < p.blocks; ++block) {
    const uint32_t* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = p.a + (row + r) * p.a_row + block * p.a_block;
    for (int64_t k = 0; k < p.depth; ++k, w += NV * W) add_words<F, NV, R>(acc, a, k, w);
  }

  // What p says is read before the first store, which as far as the compiler knows may be to `p`.
  const typename F::Rest rest(p);
  const int64_t c_row = p.c_row, init_row = p.init_row;
  const int tail = p.tail;
  int64_t at[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) at[v] = p.at[v];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r, c += c_row) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const int lanes = v == NV - 1 ? tail : W;
      const V begin = init ? V::load(init + at[v], lanes) : V(0.0f);
      F::result(rest, acc[r][v], row + r, v, begin).store(c + at[v], lanes);
    }
    if (init) init += init_row;
  }
}

template <class F, int NV, int R = kTileRows<NV>>
FUSEDRNN_INLINE void narrow_tile_of(int rows, const NarrowProduct& p, int64_t row) {
  if constexpr (R == 1) {
    narrow_tile<F, NV, 1>(p, row);
  } else {
    if (rows == R) return narrow_tile<F, NV, R>(p, row);
    narrow_tile_of<F, NV, R - 1>(rows, p, row);
  }
}

// All rows, in tiles of nearly equal height.
template <class F, int NV>
void narrow_product(const NarrowProduct& p) {
  const int64_t count = (p.rows + kTileRows<NV> - 1) / kTileRows<NV>;
  for (int64_t i = 0, row = 0; i < count; ++i) {
    const int64_t next = p.rows * (i + 1) / count;
    narrow_tile_of<F, NV>(int(next - row), p, row);
    row = next;
  }
}

template <class F>
Narrow table(const char* name, DType dtype, void (*narrow)(const WideRows&),
             decltype(Narrow::pair) pair = nullptr) {
  return {name,
          dtype,
          kLanes<float>,
          {narrow_product<F, 1>, narrow_product<F, 2>, narrow_product<F, 3>, narrow_product<F, 4>},
          narrow,
          pair};
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

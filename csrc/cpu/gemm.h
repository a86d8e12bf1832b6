// The one matrix product of the CPU kernels: C = init + A . W, where W is a panel of NV vectors per
// k, A is any strided matrix read by broadcast, and C is NV vectors a row.
//
// Every product of a layer is of this form: inputs and h times packed weights, gate gradients times
// packed transposed weights, and (A transposed by its strides) the weight gradients. A register
// tile of R rows x NV vectors runs at the FMA peak from L1 for R >= 3; K goes in blocks, so that a
// block of the panel stays in cache while all rows pass, and each block is summed from zero, which
// shortens the chains of rounding (5 to 10 times less error in a weight gradient over 6,400 rows).
#pragma once

#include "cpu/simd.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// Rows of a tile: as many as the registers hold beside NV or R operands (32 or 16 of them).
template <int NV>
constexpr int kTileRows = FUSEDRNN_VECTOR_BYTES == 64 ? (NV == 4 ? 6 : 8)
                                                      : (NV == 4   ? 3
                                                         : NV == 3 ? 4
                                                         : NV == 2 ? 6
                                                                   : 8);

// k steps of a block. With AVX-512 a tile uses a weight vector 6 times, so L2 keeps up and longer
// blocks win (Zen 5, K=512: 128 steps 249, 256 steps 260, 512 steps 267 of 272 GFLOP/s); with 16
// registers it is used 3 times, and the block has to stay in L1 (128 steps of NV = 4 are 16 KB).
constexpr int64_t kBlock = FUSEDRNN_VECTOR_BYTES == 64 ? 512 : 128;

// A is read at a[row * a_row + block * a_block + k * a_k] for `blocks` blocks of `depth` k each.
template <class T>
struct Product {
  const T* a;
  int64_t a_row, a_k, a_block;
  int64_t blocks, depth;
  const T* w;
  int64_t w_k;
  const T* init;  // null: zeros; row stride init_row (0: the same vectors for every row)
  int64_t init_row;
  T* c;
  int64_t c_row;
  int64_t rows;
  int tail;  // lanes of the last vector that exist in C
};

template <class T, int NV, int R>
__attribute__((noinline)) void tile(const Product<T>& p, int64_t row) {
  using V = Vec<T>;
  using N = typename V::Type;
  N acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = N{};

  const T* w = p.w;
  const int64_t w_k = p.w_k, a_k = p.a_k;
  for (int64_t block = 0; block < p.blocks; ++block) {
    const T* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = p.a + (row + r) * p.a_row + block * p.a_block;
    for (int64_t k = 0, at = 0; k < p.depth; ++k, at += a_k, w += w_k) {
      // Hold the shorter side, stream the other. The empty asm keeps each weight vector in a
      // register: GCC otherwise folds its load into every FMA and spills (66 of 139 GFLOP/s, AVX2).
      if constexpr (R < NV) {
        N b[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) b[r] = a[r][at] - N{};
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          N x = V::load(w + v * kLanes<T>).v;
          FUSEDRNN_KEEP(x);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) acc[r][v] += b[r] * x;
        }
      } else {
        N x[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          x[v] = V::load(w + v * kLanes<T>).v;
          FUSEDRNN_KEEP(x[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const N b = a[r][at] - N{};
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[r][v] += b * x[v];
        }
      }
    }
  }

  if (p.tail == kLanes<T>) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int64_t at = v * kLanes<T>;
        V sum(acc[r][v]);
        if (p.init) sum = sum + V::load(p.init + (row + r) * p.init_row + at);
        sum.store(p.c + (row + r) * p.c_row + at);
      }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const int n = v == NV - 1 ? p.tail : kLanes<T>;
        const int64_t at = v * kLanes<T>;
        V sum(acc[r][v]);
        if (p.init) sum = sum + V::load(p.init + (row + r) * p.init_row + at, n);
        sum.store(p.c + (row + r) * p.c_row + at, n);
      }
  }
}

template <class T, int NV, int R = kTileRows<NV>>
FUSEDRNN_INLINE void tile_of(int rows, const Product<T>& p, int64_t row) {
  if constexpr (R == 1) {
    tile<T, NV, 1>(p, row);
  } else {
    if (rows == R) return tile<T, NV, R>(p, row);
    tile_of<T, NV, R - 1>(rows, p, row);
  }
}

// All rows of one K block, in tiles of nearly equal height: a last tile of one row would run at a
// third of the speed.
template <class T, int NV>
FUSEDRNN_INLINE void tiles(const Product<T>& p) {
  const int64_t count = (p.rows + kTileRows<NV> - 1) / kTileRows<NV>;
  for (int64_t i = 0, row = 0; i < count; ++i) {
    const int64_t next = p.rows * (i + 1) / count;
    tile_of<T, NV>(int(next - row), p, row);
    row = next;
  }
}

template <class T, int NV>
void product(Product<T> p) {
  if (p.rows == 0) return;
  const int64_t blocks = p.blocks, depth = p.depth;
  if (blocks == 1 && depth > kBlock) {
    const int64_t parts = (depth + kBlock - 1) / kBlock;
    const T *a = p.a, *w = p.w;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = depth * i / parts;
      p.depth = depth * (i + 1) / parts - from;
      p.a = a + from * p.a_k;
      p.w = w + from * p.w_k;
      tiles<T, NV>(p);
      p.init = p.c;
      p.init_row = p.c_row;
    }
  } else {
    const int64_t group = depth >= kBlock ? 1 : kBlock / depth;
    const T *a = p.a, *w = p.w;
    for (int64_t from = 0; from < blocks; from += group) {
      p.blocks = blocks - from < group ? blocks - from : group;
      p.a = a + from * p.a_block;
      p.w = w + from * depth * p.w_k;
      tiles<T, NV>(p);
      p.init = p.c;
      p.init_row = p.c_row;
    }
  }
}

// NV chosen at run time, for the last, narrower group of columns.
template <class T>
void product(int vectors, const Product<T>& p) {
  switch (vectors) {
    case 1:
      return product<T, 1>(p);
    case 2:
      return product<T, 2>(p);
    case 3:
      return product<T, 3>(p);
    default:
      return product<T, 4>(p);
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

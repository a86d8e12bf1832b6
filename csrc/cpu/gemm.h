// The one matrix product of the CPU kernels: C = init + A . W. W is a panel of NV vectors for each
// k, A is any matrix with strides, read by broadcast, and C is NV vectors a row.
//
// Every product of a layer has this form: inputs and h times packed weights, gate gradients times
// packed transposed weights, and the weight gradients, whose strides transpose A. A register tile
// of R rows x NV vectors runs at the FMA peak from L1 for R >= 3. K is cut into blocks, so that a
// block of the panel stays in cache while all rows pass it. Each block is summed from zero, which
// shortens the chains of rounding (5 to 10 times less error in a weight gradient over 6,400 rows).
#pragma once

#include "cpu/layout.h"
#include "cpu/simd.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// Rows of a tile: as many as fit the registers (32 with AVX-512, else 16) beside NV or R operands.
template <int NV>
constexpr int kTileRows = FUSEDRNN_VECTOR_BYTES == 64 ? (NV == 4 ? 6 : 8)
                                                      : (NV == 4   ? 3
                                                         : NV == 3 ? 4
                                                         : NV == 2 ? 6
                                                                   : 8);

constexpr int64_t kBlock = block_of(FUSEDRNN_VECTOR_BYTES);

// k steps that the loop of a tile takes at once (kUnrolledSteps).
template <class T>
constexpr int kUnroll = FUSEDRNN_VECTOR_BYTES >= 32 && sizeof(T) == 4 ? kUnrolledSteps : 1;

// A is read at a[row * a_row + block * a_block + k * a_k] for `blocks` blocks of `depth` k each. W
// holds T, or BFloat16Pair.
template <class T, class S = T>
struct Product {
  const T* a = nullptr;
  int64_t a_row = 0, a_k = 1, a_block = 0;
  int64_t blocks = 1, depth = 0;
  const S* w = nullptr;
  int64_t w_k = 0;
  const T* init = nullptr;  // null: zeros; row stride init_row (0: the same vectors for every row)
  int64_t init_row = 0;
  T* c = nullptr;
  int64_t c_row = 0;
  int64_t rows = 0;
  int tail = kLanes<T>;  // lanes of the last vector that exist in C
  // Where the vectors of a row of C (and of init) begin: side by side, unless said otherwise.
  int64_t at[4] = {0, kLanes<T>, 2 * kLanes<T>, 3 * kLanes<T>};
  // A comes from beyond L2, so each tile fetches the rows of the next one. A then has one block.
  bool far = false;
  // Where W comes from beyond L2: the weights that are read after this product, which its tiles
  // fetch meanwhile.
  const S* next = nullptr;
  // A tile's share of those: its first element, and how many elements are fetched with every
  // kUnroll k, at most kFetchedLines cache lines. With few rows that is not all of the share.
  const S* share = nullptr;
  int64_t share_step = 0;
};

// Elements from one k of a packed panel to the next.
template <class T, class S, int NV>
constexpr int64_t kPackedRow = (std::is_same_v<S, T> ? NV : paired(NV)) * kLanes<T>;

template <class S>
constexpr int64_t kLine = 64 / sizeof(S);

// One k of a tile: keeps the shorter side in registers and reads the other vector by vector. The
// empty asm keeps each weight vector in a register, because GCC otherwise folds its load into every
// FMA and spills (66 of 139 GFLOP/s, AVX2).
template <class T, class S, int NV, int R>
FUSEDRNN_INLINE void add_k(typename Vec<T>::Type (&acc)[R][NV], const T* const (&a)[R], int64_t at,
                           const S* w) {
  using N = typename Vec<T>::Type;
  if constexpr (R < NV) {
    N b[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) b[r] = a[r][at] - N{};
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      N x = packed_vector(w, v).v;
      FUSEDRNN_KEEP(x);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) add_product<T>(acc[r][v], b[r], x);
    }
  } else {
    N x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      x[v] = packed_vector(w, v).v;
      FUSEDRNN_KEEP(x[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const N b = a[r][at] - N{};
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) add_product<T>(acc[r][v], b, x[v]);
    }
  }
}

// All k of a tile. With every kUnroll k it fetches kLines cache lines of the tile's share.
template <int kLines, class T, class S, int NV, int R, class AStride, class WStride>
FUSEDRNN_INLINE void add_blocks(typename Vec<T>::Type (&acc)[R][NV], const Product<T, S>& p,
                                int64_t row, AStride a_k, WStride w_k) {
  const S *w = p.w, *share = p.share;
  const int64_t share_step = p.share_step;
  for (int64_t block = 0; block < p.blocks; ++block) {
    const T* a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = p.a + (row + r) * p.a_row + block * p.a_block;
    int64_t k = 0, at = 0;
    constexpr int n = kUnroll<T>;
    if constexpr (n > 1) {
      for (const int64_t depth = p.depth; k + n <= depth; k += n) {
#pragma GCC unroll 4
        for (int i = 0; i < n; ++i, at += a_k, w += w_k) {
          if (i < kLines) __builtin_prefetch(share + i * kLine<S>, 0, 2);
          add_k<T, S, NV, R>(acc, a, at, w);
        }
        if (kLines > 0) share += share_step;
      }
    }
    for (; k < p.depth; ++k, at += a_k, w += w_k) add_k<T, S, NV, R>(acc, a, at, w);
  }
}

// The same by the strides that A and W mostly have, as constants to the compiler.
template <int kLines, class T, class S, int NV, int R>
FUSEDRNN_INLINE void add_all(typename Vec<T>::Type (&acc)[R][NV], const Product<T, S>& p,
                             int64_t row) {
  constexpr std::integral_constant<int64_t, 1> kAlong;
  constexpr std::integral_constant<int64_t, kPackedRow<T, S, NV>> kPacked;
  if constexpr (kUnroll<T> == 1) {
    add_blocks<0>(acc, p, row, p.a_k, p.w_k);
  } else if (kLines > 0 || p.w_k == kPacked) {
    if (p.a_k == kAlong) {
      add_blocks<kLines>(acc, p, row, kAlong, kPacked);
    } else {
      add_blocks<kLines>(acc, p, row, p.a_k, kPacked);
    }
  } else {
    add_blocks<0>(acc, p, row, p.a_k, p.w_k);
  }
}

// Fetches rows of A, which has one block.
template <class T, class S>
FUSEDRNN_INLINE void fetch_rows(const Product<T, S>& p, int64_t first, int rows) {
  const T* next = p.a + first * p.a_row;
  for (int r = 0; r < rows; ++r, next += p.a_row) {
    for (int64_t k = 0; k < p.depth; k += 64 / sizeof(T)) __builtin_prefetch(next + k);
  }
}

// One register tile. The sums stay in registers from the first line to the last: all that is called
// here is inlined, because a call would put them in memory.
template <int kLines, class T, class S, int NV, int R>
__attribute__((noinline)) void tile(const Product<T, S>& p, int64_t row) {
  using V = Vec<T>;
  using N = typename V::Type;
  N acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = N{};

  // What p says is read before the first store, which as far as the compiler knows may be to `p`.
  // Pointers are opaque to it: otherwise it computes the addresses of all vectors of C at once and
  // keeps them in memory until it stores there.
  int64_t at[NV];
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) at[v] = p.at[v];
  T* const c = p.c + row * p.c_row;
  const int64_t c_row = p.c_row;
  const T* fetched = c;  // C is on its way while K passes
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r, fetched += c_row) {
    FUSEDRNN_OPAQUE(fetched);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) __builtin_prefetch(fetched + at[v], 1);
  }

  if (p.far) fetch_rows(p, row + R, R);
  add_all<kLines>(acc, p, row);

  const int tail = p.tail;
  const auto lanes = [&](int v) { return v == NV - 1 ? tail : kLanes<T>; };
  const bool whole = tail == kLanes<T>;
  if (p.init) {
    const T* from = p.init + row * p.init_row;
    const int64_t init_row = p.init_row;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, from += init_row) {
      FUSEDRNN_OPAQUE(from);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        acc[r][v] += (whole ? V::load(from + at[v]) : V::load(from + at[v], lanes(v))).v;
      }
    }
  }
  T* to = c;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r, to += c_row) {
    FUSEDRNN_OPAQUE(to);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      if (whole) {
        V(acc[r][v]).store(to + at[v]);
      } else {
        V(acc[r][v]).store(to + at[v], lanes(v));
      }
    }
  }
}

// Tiles that fetch as they go (kLines > 0) are only those of a product of kFetchingRowsAvx512 rows
// or more. It has two tiles or more of nearly equal height, so none has less than half the rows of
// a full one, and shorter ones are not compiled.
template <int kLines, class T, class S, int NV, int R = kTileRows<NV>>
FUSEDRNN_INLINE void tile_of(int rows, const Product<T, S>& p, int64_t row) {
  static_assert(kFetchingRowsAvx512 > kTileRows<NV>);
  if constexpr (R == (kLines ? kTileRows<NV> / 2 : 1)) {
    tile<kLines, T, S, NV, R>(p, row);
  } else {
    if (rows == R) return tile<kLines, T, S, NV, R>(p, row);
    tile_of<kLines, T, S, NV, R - 1>(rows, p, row);
  }
}

// The tiles of a block share the work of fetching the next block into L2: as they go with AVX-512,
// elsewhere before they begin (kFetchingRows).
template <class T, class S>
constexpr bool kFetchesMeanwhile = FUSEDRNN_AVX512 && kUnroll<T> > 1 && std::is_same_v<S, T>;
template <class T, class S, int NV>
bool fetches(const Product<T, S>& p) {
  if (!p.next) return false;
  if (kFetchesMeanwhile<T, S>) {
    return p.rows >= kFetchingRowsAvx512 && p.w_k == kPackedRow<T, S, NV>;
  }
  return !FUSEDRNN_AVX512 && p.rows >= kFetchingRows;
}
template <class S>
FUSEDRNN_INLINE void fetch(const S* from, const S* to) {
  for (; from < to; from += kLine<S>) __builtin_prefetch(from, 0, 2);
}

// All rows of one block of K, in tiles of nearly equal height: a last tile of a single row would
// run at a third of the speed.
template <class T, class S, int NV>
FUSEDRNN_INLINE void tiles(Product<T, S>& p) {
  const int64_t count = (p.rows + kTileRows<NV> - 1) / kTileRows<NV>;
  const int64_t ahead = fetches<T, S, NV>(p) ? p.blocks * p.depth * p.w_k : 0;
  p.share_step = std::min((kUnroll<T> * p.w_k + count - 1) / count, kFetchedLines * kLine<S>);
  for (int64_t i = 0, row = 0; i < count; ++i) {
    const int64_t next = p.rows * (i + 1) / count;
    const int rows = int(next - row);
    p.share = p.next + ahead * i / count;
    if constexpr (kFetchesMeanwhile<T, S>) {
      if (ahead == 0) {
        tile_of<0, T, S, NV>(rows, p, row);
      } else if (p.share_step <= 2 * kLine<S>) {
        tile_of<2, T, S, NV>(rows, p, row);
      } else {
        tile_of<kFetchedLines, T, S, NV>(rows, p, row);
      }
    } else {
      if (ahead) fetch(p.share, p.next + ahead * (i + 1) / count);
      tile_of<0, T, S, NV>(rows, p, row);
    }
    row = next;
  }
}

template <class T, int NV, class S = T>
void product(Product<T, S> p) {
  if (p.rows == 0) return;
  const int64_t blocks = p.blocks, depth = p.depth;
  const S* const next = p.next;
  if (blocks == 1 && depth > kBlock) {
    const int64_t parts = (depth + kBlock - 1) / kBlock;
    const T* a = p.a;
    const S* w = p.w;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = depth * i / parts;
      p.depth = depth * (i + 1) / parts - from;
      p.a = a + from * p.a_k;
      p.w = w + from * p.w_k;
      if (next) p.next = i + 1 < parts ? p.w + p.depth * p.w_k : next;
      tiles<T, S, NV>(p);
      p.init = p.c;
      p.init_row = p.c_row;
    }
  } else {
    const int64_t group = depth >= kBlock ? 1 : kBlock / depth;
    const T* a = p.a;
    const S* w = p.w;
    for (int64_t from = 0; from < blocks; from += group) {
      p.blocks = blocks - from < group ? blocks - from : group;
      p.a = a + from * p.a_block;
      p.w = w + from * depth * p.w_k;
      if (next) p.next = from + group < blocks ? p.w + p.blocks * depth * p.w_k : next;
      tiles<T, S, NV>(p);
      p.init = p.c;
      p.init_row = p.c_row;
    }
  }
}

// The sums of the lanes of U = lanes/2 vectors, in the first U lanes of one. Pairs of vectors are
// interleaved and added until a single one holds two halves of every sum. By recursion, because GCC
// keeps the vectors of a loop in memory (a fifth of a tile's time at k = 512).
template <class T, int N>
FUSEDRNN_INLINE Vec<T> lane_sums(const Vec<T> (&m)[N]) {
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>();
  if constexpr (N == 1) {
    return m[0] + Vec<T>(swap_halves<T>(m[0].v, lanes));
  } else {
    Vec<T> sums[N / 2];
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i) {
      sums[i] = Vec<T>(interleave<T, false>(m[i].v, m[i + N / 2].v, lanes)) +
                Vec<T>(interleave<T, true>(m[i].v, m[i + N / 2].v, lanes));
    }
    return lane_sums<T, N / 2>(sums);
  }
}

// R rows of A times U rows of weights that lie as torch keeps them; both are read along k.
template <class T, int R, class S>
__attribute__((noinline)) void dot_tile(const T* a, int64_t a_row, const S* w, int64_t depth,
                                        const T* init, int64_t init_row, T* c, int64_t c_row) {
  using V = Vec<T>;
  constexpr int W = kLanes<T>, U = W / 2;
  V acc[R][U];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[r][u] = V(T(0));
  auto step = [&](int64_t k, int n) __attribute__((always_inline)) {
    V x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] = V::load(a + r * a_row + k, n);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      V y = load_weights(w + u * depth + k, n);
      FUSEDRNN_KEEP(y.v);  // as in tile: one load for all rows
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][u] = madd(x[r], y, acc[r][u]);
    }
  };
  int64_t k = 0;
  for (; k + W <= depth; k += W) step(k, W);
  if (k < depth) step(k, int(depth - k));
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    V sum = lane_sums<T, U>(acc[r]);
    if (init) sum = sum + V::load(init + r * init_row, U);
    sum.store(c + r * c_row, U);
  }
}

// Whether rows of weights for one row of A are read one after the other (kRowsInTurnBytes).
template <class T, class S>
bool reads_rows_in_turn(int64_t depth) {
  return (std::is_same_v<S, T> || FUSEDRNN_AVX512) &&
         depth * int64_t(sizeof(S)) <= kRowsInTurnBytes;
}

// One row of A times U rows of such weights, one row after the other.
template <class T, class S>
__attribute__((noinline)) void dot_row(const T* a, const S* w, int64_t depth, const T* init, T* c) {
  using V = Vec<T>;
  constexpr int W = kLanes<T>, U = W / 2;
  V acc[U];
  const int64_t whole = depth / W * W;
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) {
    acc[u] = V(T(0));
    for (int64_t k = 0; k < whole; k += W) {
      acc[u] = madd(V::load(a + k), load_weights(w + u * depth + k), acc[u]);
    }
  }
  if (const int n = int(depth - whole)) {
    const V x = V::load(a + whole, n);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      acc[u] = madd(x, load_weights(w + u * depth + whole, n), acc[u]);
    }
  }
  V sum = lane_sums<T, U>(acc);
  if (init) sum = sum + V::load(init, U);
  sum.store(c, U);
}

template <class T, class S>
FUSEDRNN_INLINE T dot(const T* a, const S* w, int64_t depth) {
  using V = Vec<T>;
  constexpr int W = kLanes<T>;
  V acc(T(0));
  for (int64_t k = 0; k < depth; k += W) {
    const int n = int(depth - k < W ? depth - k : W);
    acc = madd(V::load(a + k, n), load_weights(w + k, n), acc);
  }
  alignas(FUSEDRNN_VECTOR_BYTES) T lanes[W];
  acc.store(lanes);
  for (int half = W / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// As Product, but W lies where torch keeps it: `units` rows of `depth` elements, units <= lanes.
template <class T, class S>
struct DotProduct {
  const T* a;
  int64_t a_row;
  const S* w;
  int64_t depth;
  int units;
  const T* init;  // null: zeros
  int64_t init_row;
  T* c;
  int64_t c_row;
  int64_t rows;
};

// One vector of a panel: c[row][0..units) = init + a[row] . w[unit], and init or zeros in the rest
// of the vector. It serves rows so few that packing would cost more than the product. With long k
// it is as fast as packed weights, in tiles of 3 rows x lanes/2 units.
template <class T, class S>
void dot_product(const DotProduct<T, S>& p) {
  constexpr int W = kLanes<T>, U = W / 2;
  const auto [a, a_row, w, depth, units, init, init_row, c, c_row, rows] = p;
  for (int from = 0; from < W; from += U) {
    const S* w_from = w + from * depth;
    const T* init_from = init ? init + from : nullptr;
    if (from + U <= units) {
      int64_t row = 0;
      for (; row + 3 <= rows; row += 3) {
        dot_tile<T, 3>(a + row * a_row, a_row, w_from, depth,
                       init ? init_from + row * init_row : nullptr, init_row,
                       c + row * c_row + from, c_row);
      }
      for (; row < rows; ++row) {
        const T* a_at = a + row * a_row;
        const T* init_at = init ? init_from + row * init_row : nullptr;
        T* c_at = c + row * c_row + from;
        if (reads_rows_in_turn<T, S>(depth)) {
          dot_row(a_at, w_from, depth, init_at, c_at);
        } else {
          dot_tile<T, 1>(a_at, a_row, w_from, depth, init_at, init_row, c_at, c_row);
        }
      }
      continue;
    }
    for (int64_t row = 0; row < rows; ++row) {  // the last units of H
      for (int u = 0; u < U; ++u) {
        T sum = init ? init_from[row * init_row + u] : T(0);
        if (from + u < units) sum += dot(a + row * a_row, w_from + u * depth, depth);
        c[row * c_row + from + u] = sum;
      }
    }
  }
}

// The same with NV known at run time only: the last group of columns is narrower.
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

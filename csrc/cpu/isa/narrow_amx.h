// Products of narrow numbers by tile registers. A packed panel already is what they take: 16 words
// along k are 16 rows of a tile of W, whose 64 bytes are one vector's lanes, and 16 rows of A are
// the rows of another. A format F says which instruction multiplies words:
//
//   add<C, A, B>()                  adds the products of tiles A and B to C
//   kExact                          whether C holds integers, which F::result makes float32 of
//   Rest, result()                  as in narrow_tile.h
//
// Every row is summed in one order, whichever tile it falls into, so its bits do not depend on how
// many rows there are. For that few rows use tiles as well: the time of one goes with its rows.
#pragma once

#include "cpu/isa/amx.h"
#include "cpu/isa/narrow_tile.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

constexpr int kTileSide = 16;  // rows of a tile, and words of a row

// The registers: sums; A and W of 16 words; A and W of the words that are left of a block.
constexpr int kSumTiles = 4, kATile = 4, kWTile = 5, kLastATile = 6, kLastWTile = 7;

// Vectors of W are taken in pairs, times two tiles of A, or a last one by itself, times four: so
// four sums are in the making, because an instruction takes 52 cycles and one can begin every 16,
// and each load serves two.
template <int NV>
constexpr int kTilesDown = kSumTiles / NV;

inline TileShapes shapes_of(int rows, int64_t depth) {
  TileShapes shapes;
  const auto set = [&](int tile, int tile_rows, int words) {
    shapes.rows[tile] = uint8_t(tile_rows);
    shapes.row_bytes[tile] = uint16_t(words * 4);
  };
  for (int tile = 0; tile < kSumTiles; ++tile) set(tile, rows, kTileSide);
  set(kATile, rows, kTileSide);
  set(kWTile, kTileSide, kTileSide);
  if (const int left = int(depth % kTileSide)) {
    set(kLastATile, rows, left);
    set(kLastWTile, left, kTileSide);
  }
  return shapes;
}

// f(0), f(1), ... as constants.
template <int n, class Body>
FUSEDRNN_INLINE void each(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, n>());
}

// Words [k, k + 16) of a block, or those that are left: kDown tiles of A times NV of W, whose
// vectors are `width` words apart.
template <class F, int kA, int kW, int NV, int kDown>
FUSEDRNN_INLINE void add_tiles(const NarrowProduct& p, const uint32_t* a, const uint32_t* w,
                               int64_t width) {
  using Tiles = typename F::Tiles;
  const int64_t a_stride = p.a_row * 4, w_stride = width * 4;
  if constexpr (NV == 1) {
    Tiles::template load<kW>(w, w_stride);
    each<kDown>([&](auto r) {
      Tiles::template load<kA>(a + r * kTileSide * p.a_row, a_stride);
      F::template add<r, kA, kW>();
    });
  } else {
    each<kDown>([&](auto r) {
      Tiles::template load<kA>(a + r * kTileSide * p.a_row, a_stride);
      each<NV>([&](auto v) {
        Tiles::template load<kW>(w + v * kTileSide, w_stride);
        F::template add<r * NV + v, kA, kW>();
      });
    });
  }
}

// Whether a vector's sums begin with init and end in C as they are.
template <class F>
bool goes_direct(int lanes) {
  return !F::kExact && lanes == kTileSide;
}

template <class F, int kTile>
void finish_tile(const NarrowProduct& p, int64_t row, int rows, int v, int lanes) {
  using V = Vec<float>;
  alignas(64) typename F::Sums sums[kTileSide];
  F::Tiles::template store<kTile>(sums, sizeof sums[0]);
  const typename F::Rest rest(p);
  for (int r = 0; r < rows; ++r, ++row) {
    const V init = p.init ? V::load(p.init + row * p.init_row + p.at[v], lanes) : V(0.0f);
    F::result(rest, sums[r], row, v, init).store(p.c + row * p.c_row + p.at[v], lanes);
  }
}

// Some vectors of a panel: `width` words a row, those from vector `first` on.
struct Vectors {
  int64_t width;
  int first;
  int lanes(const NarrowProduct& p, int v) const {
    return (first + v + 1) * kTileSide == width ? p.tail : kTileSide;
  }
};

// NV of them times kDown tiles of `rows` rows each, from `row` on.
template <class F, int NV, int kDown>
__attribute__((noinline)) void tiles_of_rows(const NarrowProduct& p, const Vectors& some,
                                             int64_t row, int rows) {
  using Tiles = typename F::Tiles;
  each<kDown>([&](auto r) {
    each<NV>([&](auto v) {
      const int64_t at = p.at[some.first + v], first = row + r * kTileSide;
      if (p.init && goes_direct<F>(some.lanes(p, v))) {
        Tiles::template load<r * NV + v>(p.init + first * p.init_row + at, p.init_row * 4);
      } else {
        Tiles::template clear<r * NV + v>();
      }
    });
  });
  const int64_t width = some.width;
  const uint32_t* w = p.w + some.first * kTileSide;
  for (int64_t block = 0; block < p.blocks; ++block) {
    const uint32_t* a = p.a + row * p.a_row + block * p.a_block;
    int64_t k = 0;
    for (; k + kTileSide <= p.depth; k += kTileSide, w += kTileSide * width) {
      add_tiles<F, kATile, kWTile, NV, kDown>(p, a + k, w, width);
    }
    if (k < p.depth) {
      add_tiles<F, kLastATile, kLastWTile, NV, kDown>(p, a + k, w, width);
      w += (p.depth - k) * width;
    }
  }
  each<kDown>([&](auto r) {
    each<NV>([&](auto v) {
      const int64_t at = p.at[some.first + v], first = row + r * kTileSide;
      const int lanes = some.lanes(p, v);
      if (goes_direct<F>(lanes)) {
        Tiles::template store<r * NV + v>(p.c + first * p.c_row + at, p.c_row * 4);
      } else {
        finish_tile<F, r * NV + v>(p, first, rows, some.first + v, lanes);
      }
    });
  });
}

template <class F, int NV>
void vectors_of_rows(const NarrowProduct& p, const Vectors& some, int64_t begin, int64_t end) {
  constexpr int64_t kRows = kTilesDown<NV> * kTileSide;
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) {
    tiles_of_rows<F, NV, kTilesDown<NV>>(p, some, row, kTileSide);
  }
  for (; row < end; row += kTileSide) {
    tiles_of_rows<F, NV, 1>(p, some, row, int(std::min<int64_t>(end - row, kTileSide)));
  }
}

template <class F, int NV>
void tile_product(const NarrowProduct& p) {
  const int64_t whole = p.rows / kTileSide * kTileSide;
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>(0, whole), {whole, p.rows}}) {
    if (begin == end) continue;
    F::Tiles::set_up(shapes_of(int(std::min<int64_t>(end - begin, kTileSide)), p.depth));
    constexpr int64_t kWidth = NV * kTileSide;
    for (int v = 0; v + 2 <= NV; v += 2) {
      vectors_of_rows<F, 2>(p, {kWidth, v}, begin, end);
    }
    if (NV % 2) vectors_of_rows<F, 1>(p, {kWidth, NV - 1}, begin, end);
  }
  F::Tiles::give_back();
}

// What is no product it has from another table.
template <class F>
Narrow tile_table(const char* name, DType dtype, const Narrow& others) {
  return {name,
          dtype,
          kTileSide,
          {tile_product<F, 1>, tile_product<F, 2>, tile_product<F, 3>, tile_product<F, 4>},
          others.narrow,
          others.pair};
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

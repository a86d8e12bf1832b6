// The rows of a chunk in bfloat16 as weight gradients read them: a word is of two rows of one
// column, rows 0 and 1, 2 and 3, and so on. Of x and h the words of a column lie side by side, of
// gate gradients those of a pair of rows.
#pragma once

#include "cpu/narrow.h"
#include "cpu/simd.h"
#include "cpu/team.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// Row r at rows[r], null: zeros; to[column][stride] for columns [columns.begin, columns.end). Words
// are made of 16 pairs of rows at a time, and turned over in squares.
inline void turn_rows(const Narrow& narrow, const float* const* rows, int64_t count, Range columns,
                      uint32_t* to, int64_t stride) {
  constexpr int W = kLanes<float>;
  constexpr int64_t kColumns = 8 * W;
  alignas(64) uint32_t pairs[W][kColumns];
  const auto part = [](const float* row, int64_t column) { return row ? row + column : nullptr; };
  for (int64_t column = columns.begin; column < columns.end; column += kColumns) {
    const int64_t width = std::min(columns.end - column, kColumns);
    for (int64_t row = 0; row < count; row += 2 * W) {
      const int n = int(std::min<int64_t>((count - row + 1) / 2, W));
      for (int i = 0; i < n; ++i) {
        const int64_t even = row + 2 * i;
        narrow.pair(part(rows[even], column),
                    even + 1 < count ? part(rows[even + 1], column) : nullptr, width, pairs[i]);
      }
      for (int64_t c = 0; c < width; c += W) {
        Vec<float> block[W];
        for (int i = 0; i < W; ++i) {
          block[i] = i < n ? Vec<float>::load(reinterpret_cast<const float*>(pairs[i] + c))
                           : Vec<float>(0.0f);
        }
        transpose<float>(block);
        auto* out = reinterpret_cast<float*>(to + (column + c) * stride + row / 2);
        for (int i = 0; i < W && c + i < width; ++i, out += stride) block[i].store(out, n);
      }
    }
  }
}

// Two rows of words along the row, of so many vectors, as words of both rows; high null: zeros.
FUSEDRNN_INLINE void pair_words(const uint32_t* low, const uint32_t* high, int vectors,
                                uint32_t* to) {
  constexpr int W = kLanes<float>;
  constexpr auto lanes = std::make_index_sequence<W>();
  using V = Vec<float>;
  typedef uint32_t Words __attribute__((vector_size(FUSEDRNN_VECTOR_BYTES)));
  auto* out = reinterpret_cast<float*>(to);
  for (int v = 0; v < vectors; v += 2) {
    const int n = v + 1 < vectors ? W : W / 2;
    const auto* of_low = reinterpret_cast<const float*>(low + v * W / 2);
    const auto* of_high = reinterpret_cast<const float*>(high ? high + v * W / 2 : low);
    const auto a = Words(V::load(of_low, n).v), b = high ? Words(V::load(of_high, n).v) : Words{};
    const auto even = V::Type((a & 0xffff) | (b << 16)),
               odd = V::Type((a >> 16) | (b & 0xffff0000));
    V(interleave<float, false>(even, odd, lanes)).store(out + v * W);
    if (n == W) V(interleave<float, true>(even, odd, lanes)).store(out + (v + 1) * W);
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

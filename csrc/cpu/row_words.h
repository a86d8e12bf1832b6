// The rows of a chunk in bfloat16, turned over for weight gradients: a word is of two rows of one
// column, rows 0 and 1, 2 and 3, and so on, and the words of a column lie side by side.
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

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

// Products of narrow numbers, by instructions that multiply several of them at once: bfloat16,
// summed in float32, and int8, summed in int32. Numbers lie along k in words of 32 bits, two
// bfloat16 or four int8, and one instruction adds a word's products to one sum. Panels and tiles
// then look as in gemm.h, with words in the place of elements.
//
// There is a table for each instruction set, in isa/narrow_*.cpp. Integer sums are exact, so tables
// for int8 give the same bits, but for one rounding less with FMA. Plain structs, as in params.h.
#pragma once

#include "model/problem.h"

namespace fusedrnn::cpu {

// C[row] = init[row] + A[row] . W, vectors of float32.
struct NarrowProduct {
  // Words along k: those of row r and block b at a + r * a_row + b * a_block. Only bfloat16 has
  // more blocks than one.
  const uint32_t* a;
  int64_t a_row;
  int64_t a_block = 0;
  int64_t blocks = 1, depth;  // words of a block
  const uint32_t* w;          // [blocks * depth][vectors * lanes]
  const float* init;          // null: zeros; row stride init_row
  int64_t init_row;
  float* c;
  int64_t c_row;
  int64_t rows;
  int tail;       // lanes of the last vector that exist in C and init
  int64_t at[4];  // where the vectors of a row of C (and of init) begin
  // int8 alone. A sum of products is (sum - w_offset) * a_scale * w_scale.
  const float* a_scale = nullptr;     // of each row
  const float* w_scale = nullptr;     // [vectors * lanes]
  const int32_t* w_offset = nullptr;  // likewise: kZero times the sum of a column of W
};

// The instructions for int8 want one side unsigned, so the numbers of A are stored with this added,
// or as magnitudes and signs.
constexpr int kZero = 128;

// Rows of float32 that are to become words.
struct WideRows {
  const float* from;
  int64_t stride, rows, n;
  uint32_t* to;  // what is left of a row's last word is the number zero
  int64_t to_stride;
  float* scales;  // int8: of each row
};

struct Narrow {
  const char* name;
  DType dtype;
  int lanes;
  // Products of 1 to 4 vectors.
  void (*product[4])(const NarrowProduct& p);
  void (*narrow)(const WideRows& rows);
  // bfloat16: n words of two rows' elements, the first's in the low half; null: zeros.
  void (*pair)(const float* low, const float* high, int64_t n, uint32_t* to);
  // int8: a row of A is pairs of words, magnitudes and signs (isa/narrow_int8_signs.h).
  bool signs = false;
};

// Numbers of a word, and words of n numbers.
constexpr int64_t per_word(DType dtype) { return 4 / size_of(dtype); }
constexpr int64_t words_of(DType dtype, int64_t n) {
  return (n + per_word(dtype) - 1) / per_word(dtype);
}
// Words of a row of A, of n numbers.
constexpr int64_t row_words(const Narrow& narrow, int64_t n) {
  const int64_t words = words_of(narrow.dtype, n);
  return narrow.signs ? 2 * words + 1 : words;
}

// The fastest table that this machine can run, of so many lanes; null where there is none.
const Narrow* narrow_of(DType dtype, int lanes);

}  // namespace fusedrnn::cpu

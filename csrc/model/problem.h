// What a layer is: one direction of it, in sizes and types. Kernels, plans and operators all speak
// of a layer by this.
//
// T time steps, B batch rows, I input size, H hidden size, P size of h (= H without projection),
// N rows of all steps together (T*B, or fewer when packed). Matrices are row-major; weights and
// their gate order (i, f, g, o; r, z, n) are torch's.
#pragma once

#include <cstdint>

#include "model/cell.h"
#include "model/rows.h"

namespace fusedrnn {

enum class DType : int8_t { kFloat32, kFloat64, kBFloat16, kInt8 };
constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 8;
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
      return 2;
    case DType::kInt8:
      return 1;
  }
  return 0;
}

struct DTypes {
  DType stored;      // weights in memory
  DType computed;    // sums and gates
  DType state;       // x, h, c, y and their gradients
  DType multiplied;  // what the numbers of a product may be rounded to, where that is faster
};
constexpr DTypes all_of(DType dtype) { return {dtype, dtype, dtype, dtype}; }

struct Problem {
  Cell cell;
  DTypes dtypes;
  int64_t T, B, I, H, P;
  bool projected;
  bool training;
  bool frozen;    // weights come packed, ForwardParams::packed
  int64_t every;  // steps from one kept c to the next; 0: all that backward reads is kept
  bool reverse;
  bool packed;             // steps have fewer and fewer rows
  const int64_t* offsets;  // [T+1] when packed, see Rows; null: nobody asks for rows, or not packed
  // [N]: whether the state that this direction comes to a row with is cut there; null: none is. For
  // the CPU kernels; a CUDA device gets what lies between cuts as packed rows.
  const uint8_t* cuts;

  FUSEDRNN_ROWS Rows rows() const { return {T, B, offsets, reverse}; }
  // Whether forward keeps all that backward reads, or a part, from which backward makes the rest.
  FUSEDRNN_ROWS bool keeps_all() const { return training && every == 0; }
  FUSEDRNN_ROWS bool keeps_some() const { return training && every > 0; }
};

}  // namespace fusedrnn

// A stack of layers for inference alone: its weights are packed once for this machine and never
// change, so any number of threads and of forked processes may share them. No torch is needed.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/params.h"

namespace fusedrnn::frozen {

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;
// So many bytes, rounded up to a whole cache line, at the beginning of one; throws std::bad_alloc.
Memory aligned(int64_t bytes);

struct Shape {
  Cell cell;
  int64_t L, D, I, H;
  int64_t P;  // size of h; H without projection
  bool projected;
  DType stored;    // of W_ih and W_hh: float32, float64, bfloat16 or int8
  DType computed;  // of all else: float64 where W is, otherwise float32

  int64_t inputs_of(int64_t l) const { return l == 0 ? I : D * P; }
  int64_t rows() const { return gates_of(cell) * H; }  // G*H, those of a matrix
  DTypes dtypes() const {
    DTypes all = all_of(computed);
    all.stored = all.multiplied = stored;
    return all;
  }
};

// The weights of one direction, as torch lays them out; W_ih and W_hh in Shape::stored, all else in
// Shape::computed.
struct Weights {
  const void *w_ih, *w_hh;   // [G*H, I], [G*H, P]
  const float *s_ih, *s_hh;  // [G*H]  int8: the scale of each row
  const void *b_ih, *b_hh;   // [G*H]; null: no biases
  const void* w_hr;          // [P, H]; projected
};

class Stack {
 public:
  // `all`: for each layer and direction in turn. Throws std::invalid_argument.
  Stack(const Shape& shape, const std::vector<Weights>& all);
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  const Shape& shape() const { return shape_; }
  int64_t bytes() const { return bytes_; }
  // What multiplies: the narrow instructions in use (cpu/narrow.h), or "" where there are none.
  const char* products() const;
  // The packed weights of a direction: ForwardParams::packed.
  const void* packed(int64_t layer, int64_t direction) const {
    return blocks_[layer * shape_.D + direction];
  }
  // Layer `l` over T steps of B rows, forward, its weights frozen.
  Problem problem(int64_t layer, int64_t T, int64_t B) const;
  // W_ih (or W_hh) of a direction as it was given.
  void unpack(int64_t layer, int64_t direction, bool recurrent, void* to) const;

 private:
  Shape shape_;
  int64_t bytes_ = 0;
  Memory memory_;
  std::vector<const void*> blocks_;
};

}  // namespace fusedrnn::frozen

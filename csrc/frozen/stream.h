// Sequences that go on and on, a step or a few at a time: an object that owns their states and all
// the room that a step takes, so that a step allocates nothing and asks nobody.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "frozen/frozen.h"

namespace fusedrnn::frozen {

class Stream {
 public:
  // Throws std::invalid_argument: a stack of two directions needs the end of a sequence first.
  Stream(std::shared_ptr<const Stack> stack, int64_t rows);

  const Stack& stack() const { return *stack_; }
  int64_t rows() const { return rows_; }

  // T steps of all rows: x [T, rows, I], y [T, rows, P], in Shape::computed. One thread at a time;
  // throws std::logic_error where another is in it.
  void run(const void* x, void* y, int64_t T);

  // States become zeros: of one row, or of all (-1).
  void reset(int64_t row);
  // `count` further rows after the others, in the state zero.
  void join(int64_t count);
  // Row `row` goes; those after it move up.
  void leave(int64_t row);

  // States of all rows: h [L, rows, P], c [L, rows, H] (null where the cell has none).
  void read_states(void* h, void* c) const;
  void write_states(const void* h, const void* c);

 private:
  // What a call over T steps needs, made when T or rows change.
  struct Ready {
    int64_t T = 0, rows = 0;
    std::vector<cpu::Plan> plans;            // a layer each
    std::vector<cpu::ForwardParams> params;  // likewise
    Memory between, workspace;               // outputs of all layers but the last
  };
  class Busy;

  void prepare(Ready& ready, int64_t T);
  int64_t element() const { return size_of(stack_->shape().computed); }
  int64_t h_bytes() const { return stack_->shape().P * element(); }
  int64_t c_bytes() const;

  const std::shared_ptr<const Stack> stack_;
  int64_t rows_ = 0;
  std::vector<std::vector<char>> h_, c_;  // of each layer [rows, P], [rows, H]
  Ready step_, steps_;                    // of one step, of several
  std::atomic<bool> busy_{false};
};

}  // namespace fusedrnn::frozen

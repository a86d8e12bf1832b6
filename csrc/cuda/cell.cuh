// Where a cell of csrc/cells meets memory: which slot of a row of `slots` is which of the cell's,
// and how the two products make its pre-activations.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/scalar.cuh"
#include "recurrence.h"

namespace fusedrnn::cuda {

template <Cell kCell>
struct CellOf {
  using Type = Rnn<kCell == Cell::kRnnRelu>;
};
template <>
struct CellOf<Cell::kLstm> {
  using Type = Lstm;
};
template <>
struct CellOf<Cell::kGru> {
  using Type = Gru;
};

// The cell's slot that lies at `position` in memory: torch's order there (r, z, n, h_n), n, r, z,
// h_n in the cell.
template <Cell kCell>
constexpr FUSEDRNN_DEVICE int slot_at(int position) {
  return kCell == Cell::kGru && position < 3 ? (position + 1) % 3 : position;
}

// In torch's gate order: x W_ih' + b_ih and h W_hh' + b_hh. They add up, but for GRU's n, where r
// comes between them.
template <Cell kCell, class V, int kGates, int kSlots>
FUSEDRNN_DEVICE void assemble(const V (&x)[kGates], const V (&h)[kGates], V (&slots)[kSlots]) {
  if constexpr (kCell == Cell::kGru) {
    slots[0] = x[2];
    slots[1] = x[0] + h[0];
    slots[2] = x[1] + h[1];
    slots[3] = h[2];
  } else {
#pragma unroll
    for (int g = 0; g < kGates; ++g) slots[g] = x[g] + h[g];
  }
}

// The slot whose gradient is gate g's of h W_hh'.
template <Cell kCell>
constexpr FUSEDRNN_DEVICE int recurrent_slot(int gate) {
  return kCell == Cell::kGru ? gate + 1 : gate;
}

}  // namespace fusedrnn::cuda

// Where a cell of csrc/cells meets memory: which slot of a row of `slots` is which of the cell's,
// and how the two products make its pre-activations. All of it follows from the cell's spec.
//
// A cell numbers its slots one way, memory on a GPU another. In memory the first G are the gates in
// torch's order, as the product with x makes them, and behind them lies what the cell keeps apart.
// On the CPU the memory has the cell's own order. GRU: n, r, z, h_n in the cell; r, z, n, h_n here.
#pragma once

#include "cells/all.h"
#include "cuda/params.h"
#include "cuda/scalar.cuh"

namespace fusedrnn::cuda {

// Four small numbers as the digits of one, so that picking one takes no memory on a device.
constexpr unsigned digits(const int8_t (&numbers)[4]) {
  return unsigned(numbers[0] | numbers[1] << 4 | numbers[2] << 8 | numbers[3] << 12);
}

template <Cell kCell>
struct SlotsOf {
  static constexpr unsigned kInput = digits(spec(kCell).input_slot);
  static constexpr unsigned kRecurrent = digits(spec(kCell).recurrent_slot);
  static constexpr int kGates = spec(kCell).gates;
};

// The slots that gate `gate` of x W_ih' and of h W_hh' adds to.
template <Cell kCell>
constexpr FUSEDRNN_DEVICE int input_slot(int gate) {
  return int(SlotsOf<kCell>::kInput >> 4 * gate & 15);
}
template <Cell kCell>
constexpr FUSEDRNN_DEVICE int recurrent_slot(int gate) {
  return int(SlotsOf<kCell>::kRecurrent >> 4 * gate & 15);
}

// Whether the cell keeps a gate's h W_hh' + b_hh apart from its x W_ih' + b_ih: GRU's n, where r
// comes between them.
template <Cell kCell>
constexpr FUSEDRNN_DEVICE bool is_inner(int gate) {
  return input_slot<kCell>(gate) != recurrent_slot<kCell>(gate);
}

// The cell's slot that lies at `position` in memory.
template <Cell kCell>
constexpr FUSEDRNN_DEVICE int slot_at(int position) {
  return position < SlotsOf<kCell>::kGates ? input_slot<kCell>(position) : position;
}

// Pre-activations of a row, from x W_ih' + b_ih and h W_hh' + b_hh in torch's gate order.
template <Cell kCell, class V, int kGates, int kSlots>
FUSEDRNN_DEVICE void assemble(const V (&x)[kGates], const V (&h)[kGates], V (&slots)[kSlots]) {
#pragma unroll
  for (int g = 0; g < kGates; ++g) {
    if (is_inner<kCell>(g)) {
      slots[input_slot<kCell>(g)] = x[g];
      slots[recurrent_slot<kCell>(g)] = h[g];
    } else {
      slots[input_slot<kCell>(g)] = x[g] + h[g];
    }
  }
}

// The cells of a family share kernels, which learn at run time which of two cells they run: the one
// that the family is named by, or the second. Kernels ask whether it is the second; asked whether
// it is another than the first, Elman kernels are compiled otherwise.
constexpr Cell second_of(Cell family) {
  Cell found = family;
  for (int i = 0; i < kCellCount; ++i) {
    if (Cell(i) != family && kCells[i].family == family) found = Cell(i);
  }
  return found;
}

template <Cell kFamily>
struct Family {
  using First = typename CellOf<kFamily>::Type;
  static constexpr Cell kSecond = second_of(kFamily);
  using Second = typename CellOf<kSecond>::Type;
  static constexpr bool kHasTwo = kSecond != kFamily;

  template <class V>
  static FUSEDRNN_DEVICE V forward(bool second, V (&slots)[First::kSlots], V h_prev, V& c) {
    if constexpr (kHasTwo) {
      return second ? Second::forward(slots, h_prev, c) : First::forward(slots, h_prev, c);
    } else {
      return First::forward(slots, h_prev, c);
    }
  }
  template <class V>
  static FUSEDRNN_DEVICE void backward(bool second, V (&slots)[First::kSlots], V h, V h_prev,
                                       V c_prev, V c, V& dh, V& dc) {
    if (kHasTwo && second) {
      Second::backward(slots, h, h_prev, c_prev, c, dh, dc);
    } else {
      First::backward(slots, h, h_prev, c_prev, c, dh, dc);
    }
  }
};

}  // namespace fusedrnn::cuda

// Minimal gated unit (Zhou et al. 2016, gate after the product): the GRU with one gate for both.
//   f = sigmoid(...)    n = tanh(x_n + f * h_n)    h = h_prev + f * (n - h_prev)
// with x_n = x W_in' + b_in and h_n = h_prev W_hn' + b_hn.
//
// Slots n, f, h_n in this order: the input product fills the first two, the recurrent product the
// last two, and so do their gradients; both products then see contiguous slots.
#pragma once

#include "cells/math.h"
#include "cells/traits.h"

namespace fusedrnn {

struct Mgu : CellTraits<Cell::kMgu> {
  template <class V>
  FUSEDRNN_CELL static V forward(V (&s)[kSlots], V h_prev, V& c) {
    begin(s, c);
    return finish(s, h_prev, c);
  }

  // The same in two parts: what n is the tanh of; n and the output.
  static constexpr unsigned kBegun = 0b011, kFinished = 0b001;  // slots that each part makes
  static constexpr unsigned kHandedOn = 0b011;                  // that the second has of the first
  template <class V>
  FUSEDRNN_CELL static void begin(V (&s)[kSlots], V& /*c*/) {
    s[1] = sigmoid(s[1]);
    s[0] = madd(s[1], s[2], s[0]);
  }
  template <class V>
  FUSEDRNN_CELL static V finish(V (&s)[kSlots], V h_prev, V /*c*/) {
    s[0] = tanh(s[0]);
    return madd(s[1], s[0] - h_prev, h_prev);
  }

  // In: n, f, h_n and dh. Out: gradients of the slots; dh = dh - f dh, what reaches h_prev
  // unweighted. f acts twice: on h_n, as GRU's r, and on n - h_prev, as its z. Slopes come first:
  // dn * h_n may overflow where its product with a slope does not.
  template <class V>
  FUSEDRNN_CELL static void backward(V (&s)[kSlots], V /*h*/, V h_prev, V /*c_prev*/, V /*c*/,
                                     V& dh, V& /*dc*/) {
    const V one(1.0f), n = s[0], f = s[1], h_n = s[2];
    const V slope = f * (one - f), dn = f * dh * (one - n * n);
    s[0] = dn;
    s[1] = madd(slope * h_n, dn, slope * (n - h_prev) * dh);
    s[2] = dn * f;
    dh = madd(f, V(0.0f) - dh, dh);
  }
};

}  // namespace fusedrnn

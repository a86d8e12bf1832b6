// GRU cell in the form of torch and cuDNN (Cho et al. 2014, reset gate after the product):
//   r, z = sigmoid(...)    n = tanh(x_n + r * h_n)    h = n + z * (h_prev - n)
// with x_n = x W_in' + b_in and h_n = h_prev W_hn' + b_hn.
//
// Slots n, r, z, h_n in this order: the input product fills the first three, the recurrent product
// the last three, and so do their gradients; both products then see contiguous slots.
#pragma once

#include "cells/math.h"
#include "cells/traits.h"

namespace fusedrnn {

struct Gru : CellTraits<Cell::kGru> {
  template <class V>
  FUSEDRNN_CELL static V forward(V (&s)[kSlots], V h_prev, V& c) {
    begin(s, c);
    return finish(s, h_prev, c);
  }

  // The same in two parts: what n is the tanh of; n, z and the output.
  static constexpr unsigned kBegun = 0b0011, kFinished = 0b0101;  // slots that each part makes
  static constexpr unsigned kHandedOn = 0b0001;  // that the second has of the first
  template <class V>
  FUSEDRNN_CELL static void begin(V (&s)[kSlots], V& /*c*/) {
    s[1] = sigmoid(s[1]);
    s[0] = madd(s[1], s[3], s[0]);
  }
  template <class V>
  FUSEDRNN_CELL static V finish(V (&s)[kSlots], V h_prev, V /*c*/) {
    s[2] = sigmoid(s[2]);
    s[0] = tanh(s[0]);
    return madd(s[2], h_prev - s[0], s[0]);
  }

  // In: n, r, z, h_n and dh. Out: gradients of the slots; dh = dh * z, what reaches h_prev
  // unweighted. Slopes come first: dn * h_n may overflow where its product with a slope does not.
  // dh - z dh and not dh (1 - z): torch.nn's nan where dh is infinite, else rounded but once.
  template <class V>
  FUSEDRNN_CELL static void backward(V (&s)[kSlots], V /*h*/, V h_prev, V /*c_prev*/, V /*c*/,
                                     V& dh, V& /*dc*/) {
    const V one(1.0f), n = s[0], r = s[1], z = s[2], h_n = s[3];
    const V dn = madd(z, V(0.0f) - dh, dh) * (one - n * n);
    s[0] = dn;
    s[1] = r * (one - r) * h_n * dn;
    s[2] = z * (one - z) * (h_prev - n) * dh;
    s[3] = dn * r;
    dh = dh * z;
  }
};

}  // namespace fusedrnn

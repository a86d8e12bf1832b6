// Elman cell (Elman 1990): h = tanh(x W_ih' + h W_hh' + b), or relu in place of tanh.
// Both slopes follow from h itself, which is the output, so nothing else is kept for backward.
#pragma once

#include "cells/math.h"
#include "cells/traits.h"

namespace fusedrnn {

template <bool kRelu>
struct Rnn : CellTraits<kRelu ? Cell::kRnnRelu : Cell::kRnnTanh> {
  static constexpr int kSlots = 1;  // named here: a dependent base's is not found in a signature

  static constexpr unsigned kBegun = 0;  // no use in two parts
  template <class V>
  FUSEDRNN_CELL static V forward(V (&s)[kSlots], V /*h_prev*/, V& /*c*/) {
    if constexpr (kRelu) {
      return relu(s[0]);
    } else {
      return tanh(s[0]);
    }
  }

  // In: h and dh. Out: s[0] = gradient of the pre-activation; dh = what reaches h_prev unweighted.
  template <class V>
  FUSEDRNN_CELL static void backward(V (&s)[kSlots], V h, V /*h_prev*/, V /*c_prev*/, V /*c*/,
                                     V& dh, V& /*dc*/) {
    if constexpr (kRelu) {
      s[0] = where_positive(h, dh);
    } else {
      s[0] = dh * (V(1.0f) - h * h);
    }
    dh = V(0.0f);
  }
};

}  // namespace fusedrnn

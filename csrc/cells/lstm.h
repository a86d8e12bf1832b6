// LSTM cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).
// Slots i, f, g, o as in torch: pre-activations going in, activated gates coming out. Keeping the
// activated gates and c is enough for backward, whose only exponential is tanh(c).
#pragma once

#include "cells/math.h"
#include "cells/traits.h"

namespace fusedrnn {

struct Lstm : CellTraits<Cell::kLstm> {
  template <class V>
  FUSEDRNN_CELL static V forward(V (&s)[kSlots], V h_prev, V& c) {
    begin(s, c);
    return finish(s, h_prev, c);
  }

  // The same in two parts: the state; the output.
  static constexpr unsigned kBegun = 0b0111, kFinished = 0b1000;  // slots that each part makes
  static constexpr unsigned kHandedOn = 0;  // that the second has of the first
  template <class V>
  FUSEDRNN_CELL static void begin(V (&s)[kSlots], V& c) {
    s[0] = sigmoid(s[0]);
    s[1] = sigmoid(s[1]);
    s[2] = tanh(s[2]);
    c = state(s, c);
  }
  template <class V>
  FUSEDRNN_CELL static V finish(V (&s)[kSlots], V /*h_prev*/, V c) {
    s[3] = sigmoid(s[3]);
    return output(s, c);
  }

  static constexpr int kTanhGate = 2;  // g: the other gates are sigmoids
  // From activated gates.
  template <class V>
  FUSEDRNN_CELL static V update(const V (&s)[kSlots], V& c) {
    c = state(s, c);
    return output(s, c);
  }
  template <class V>
  FUSEDRNN_CELL static V state(const V (&s)[kSlots], V c) {
    return madd(s[1], c, s[0] * s[2]);
  }
  template <class V>
  FUSEDRNN_CELL static V output(const V (&s)[kSlots], V c) {
    return s[3] * tanh(c);
  }

  // In: activated gates, dh and dc of this step. Out: gradients of the pre-activations in s, dc of
  // the step before, dh = what reaches h_prev unweighted (nothing). Slopes come first: d * c_prev
  // may overflow where its product with a slope does not.
  template <class V>
  FUSEDRNN_CELL static void backward(V (&s)[kSlots], V /*h*/, V /*h_prev*/, V c_prev, V c, V& dh,
                                     V& dc) {
    const V one(1.0f), i = s[0], f = s[1], g = s[2], o = s[3];
    const V tanh_c = tanh(c);
    const V d = madd(dh * o, one - tanh_c * tanh_c, dc);
    s[0] = i * (one - i) * g * d;
    s[1] = f * (one - f) * c_prev * d;
    s[2] = (one - g * g) * i * d;
    s[3] = o * (one - o) * tanh_c * dh;
    dc = d * f;
    dh = V(0.0f);
  }
};

}  // namespace fusedrnn

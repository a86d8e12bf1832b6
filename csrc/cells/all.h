// Every cell's mathematics, by its enumerator.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/mgu.h"
#include "cells/rnn.h"

namespace fusedrnn {

template <Cell kCell>
struct CellOf;
template <>
struct CellOf<Cell::kRnnTanh> {
  using Type = Rnn<false>;
};
template <>
struct CellOf<Cell::kRnnRelu> {
  using Type = Rnn<true>;
};
template <>
struct CellOf<Cell::kLstm> {
  using Type = Lstm;
};
template <>
struct CellOf<Cell::kGru> {
  using Type = Gru;
};
template <>
struct CellOf<Cell::kMgu> {
  using Type = Mgu;
};

}  // namespace fusedrnn

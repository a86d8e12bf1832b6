// A cell's row of the table in model/cell.h, as the constants that its own code is written with.
#pragma once

#include "model/cell.h"

namespace fusedrnn {

template <Cell kCell>
struct CellTraits {
  static constexpr int kGates = spec(kCell).gates, kSlots = spec(kCell).slots;
  static constexpr bool kHasC = spec(kCell).has_c, kKeepsSlots = spec(kCell).keeps_slots;
  static constexpr bool kUsesPreviousH = spec(kCell).uses_previous_h;
};

}  // namespace fusedrnn

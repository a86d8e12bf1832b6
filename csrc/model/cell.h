// The cells there are, and what the code around them asks of each: one table, which Python reads
// too. A cell's mathematics stands in csrc/cells, its definition in fusedrnn/reference.py; nothing
// else tests which cell it has.
#pragma once

#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>

namespace fusedrnn {

// An int: of a byte nvcc takes registers for the comparisons, and kernels spill.
enum class Cell { kRnnTanh, kRnnRelu, kLstm, kGru, kMgu };

// torch.nn's layer of the same mathematics; kNone: there is none to hand a call over to.
enum class TorchLayer : int8_t { kNone, kRnnTanh, kRnnRelu, kLstm, kGru };

// Gates are numbered as torch stacks them in W_ih and W_hh: i, f, g, o; r, z, n. Slots are what a
// step holds of each hidden unit, numbered as in csrc/cells: pre-activations before the cell,
// what backward reads of it after. `input_slot[g]` is the slot that gate g of x W_ih' adds to,
// `recurrent_slot[g]` that of h W_hh'. Where a gate's two slots differ, as GRU's n, the cell keeps
// the recurrent part to itself.
struct CellSpec {
  const char* name;      // the operators' `mode`
  int gates;             // G, blocks of H rows in a weight
  int slots;             // S
  bool has_c;            // a second state, c
  bool keeps_slots;      // backward reads the slots; otherwise h tells it all
  bool uses_previous_h;  // forward and backward read h of the step before beside the product
  int8_t input_slot[4], recurrent_slot[4];
  TorchLayer torch;
  Cell family;  // cells that differ in an activation alone share tiles and measurements: whose
};

inline constexpr CellSpec kCells[] = {
    {"RNN_TANH", 1, 1, false, false, false, {0}, {0}, TorchLayer::kRnnTanh, Cell::kRnnTanh},
    {"RNN_RELU", 1, 1, false, false, false, {0}, {0}, TorchLayer::kRnnRelu, Cell::kRnnTanh},
    {"LSTM", 4, 4, true, true, false, {0, 1, 2, 3}, {0, 1, 2, 3}, TorchLayer::kLstm, Cell::kLstm},
    {"GRU", 3, 4, false, true, true, {1, 2, 0}, {1, 2, 3}, TorchLayer::kGru, Cell::kGru},
    {"MGU", 2, 3, false, true, true, {1, 0}, {1, 2}, TorchLayer::kNone, Cell::kMgu},
};
inline constexpr int kCellCount = int(std::size(kCells));

constexpr const CellSpec& spec(Cell cell) { return kCells[int(cell)]; }
constexpr int64_t gates_of(Cell cell) { return spec(cell).gates; }

// Whether `holds` does for every cell.
template <class Holds>
constexpr bool true_of_all_cells(const Holds& holds) {
  for (const CellSpec& each : kCells) {
    if (!holds(each)) return false;
  }
  return true;
}

// Calls f(std::integral_constant<Cell, cell>()), so that f may use the cell as a template argument.
template <class F, int... kIndex>
constexpr auto with_cell(Cell cell, const F& f, std::integer_sequence<int, kIndex...>) {
  using Result = decltype(f(std::integral_constant<Cell, Cell::kRnnTanh>()));
  if constexpr (std::is_void_v<Result>) {
    (void)((cell == Cell(kIndex) && (f(std::integral_constant<Cell, Cell(kIndex)>()), true)) ||
           ...);
  } else {
    Result result{};
    (void)((cell == Cell(kIndex) &&
            (result = f(std::integral_constant<Cell, Cell(kIndex)>()), true)) ||
           ...);
    return result;
  }
}
template <class F>
constexpr auto with_cell(Cell cell, const F& f) {
  return with_cell(cell, f, std::make_integer_sequence<int, kCellCount>());
}

}  // namespace fusedrnn

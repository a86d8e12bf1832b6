// See operands.h.
#include "ops/operands.h"

#include <c10/util/Exception.h>

namespace fusedrnn::ops {
namespace {

// A layer that keeps c beside h can project h alone.
bool may_project(Cell cell) { return spec(cell).has_c; }

}  // namespace

std::string names_of_cells(bool (*is)(const CellSpec&)) {
  std::string names;
  int left = 0;
  for (const CellSpec& each : kCells) left += is(each);
  for (const CellSpec& each : kCells) {
    if (!is(each)) continue;
    --left;
    names += each.name + std::string(left > 1 ? ", " : left == 1 ? " or " : "");
  }
  return names;
}

Cell cell_of(c10::string_view mode) {
  for (int i = 0; i < kCellCount; ++i) {
    if (mode == kCells[i].name) return Cell(i);
  }
  TORCH_CHECK(false, "fusedrnn: mode must be ",
              names_of_cells([](const CellSpec&) { return true; }), ", got ", mode);
}

DType dtype_of(at::ScalarType type) {
  if (type == at::kFloat) return DType::kFloat32;
  if (type == at::kDouble) return DType::kFloat64;
  TORCH_CHECK(false, "fusedrnn: a layer computes in float32 or float64, got ", type);
}

WeightList weights_of_layer(Cell cell, bool has_biases, at::TensorList all) {
  const auto count = int64_t(all.size());
  for (const bool projected : {false, true}) {
    const WeightList weights{all, has_biases, projected};
    const int64_t each = weights.per_direction();
    const bool fits = count == each || count == 2 * each;
    if (fits && (!projected || may_project(cell))) return weights;
  }
  const int64_t plain = WeightList{{}, has_biases, false}.per_direction();
  TORCH_CHECK(false, "fusedrnn: a layer takes ", plain, " or ", 2 * plain, " weights",
              may_project(cell) ? " (one more a direction projected)" : "", ", got ", count);
}

WeightList weights_of_stack(Cell cell, bool has_biases, at::TensorList all, int64_t L, int64_t D) {
  TORCH_CHECK(L > 0, "num_layers must be greater than zero");
  for (const bool projected : {false, true}) {
    const WeightList weights{all, has_biases, projected};
    const bool fits =
        int64_t(all.size()) % L == 0 && int64_t(all.size()) / L == D * weights.per_direction();
    if (fits && (!projected || may_project(cell))) return weights;
  }
  TORCH_CHECK(false, "fusedrnn: expected weights of ", L, " layers of ", D, " directions, ",
              has_biases ? "4" : "2", " for each (one more projected), got ", all.size());
}

}  // namespace fusedrnn::ops

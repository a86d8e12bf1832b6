// Forward recurrences of the minimal gated unit.
#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/persistent.cuh"

namespace fusedrnn::cuda {

template <>
int forward_of<Cell::kMgu>(const Forward& params, const Plan& plan, void* stream) {
  return start_tile<Cell::kMgu>(params, plan, stream, [](auto tile) {
    return std::pair(&recurrence_forward<tile>, forward_shape(kTiles[tile]));
  });
}

}  // namespace fusedrnn::cuda

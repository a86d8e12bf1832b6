// Forward recurrences of the GRU.
#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/persistent.cuh"

namespace fusedrnn::cuda {

template <>
int forward_of<Cell::kGru>(const Forward& params, const Plan& plan, void* stream) {
  return start_tile<Cell::kGru>(params, plan, stream, [](auto tile) {
    return std::pair(&recurrence_forward<tile>, forward_shape(kTiles[tile]));
  });
}

}  // namespace fusedrnn::cuda

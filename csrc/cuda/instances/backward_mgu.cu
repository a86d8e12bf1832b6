// Backward recurrences of the minimal gated unit.
#include "cuda/persistent/backward_block.cuh"
#include "cuda/persistent/backward_cluster.cuh"
#include "cuda/persistent/persistent.cuh"

namespace fusedrnn::cuda {

template <>
int backward_of<Cell::kMgu>(const Backward& params, const Plan& plan, void* stream) {
  return start_tile<Cell::kMgu>(params, plan, stream, [](auto tile) {
    return std::pair(&recurrence_backward<tile>, backward_shape(kTiles[tile]));
  });
}

}  // namespace fusedrnn::cuda

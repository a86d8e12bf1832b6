// Backward recurrences of the Elman cell, of both nonlinearities.
#include "cuda/persistent/backward_block.cuh"
#include "cuda/persistent/backward_cluster.cuh"
#include "cuda/persistent/persistent.cuh"

namespace fusedrnn::cuda {

template <>
int backward_of<Cell::kRnnTanh>(const Backward& params, const Plan& plan, void* stream) {
  return start_tile<Cell::kRnnTanh>(params, plan, stream, [](auto tile) {
    return std::pair(&recurrence_backward<tile>, backward_shape(kTiles[tile]));
  });
}

}  // namespace fusedrnn::cuda

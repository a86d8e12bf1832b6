// Forward recurrences of the Elman cell, of both nonlinearities.
#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/persistent.cuh"

namespace fusedrnn::cuda {

template <>
int forward_of<Cell::kRnnTanh>(const Forward& params, const Plan& plan, void* stream) {
  return start_tile<Cell::kRnnTanh>(params, plan, stream, [](auto tile) {
    return std::pair(&recurrence_forward<tile>, forward_shape(kTiles[tile]));
  });
}

}  // namespace fusedrnn::cuda

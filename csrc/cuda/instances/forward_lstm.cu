// Forward recurrences of the LSTM.
#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/persistent.cuh"

namespace fusedrnn::cuda {

template <>
int forward_of<Cell::kLstm>(const Forward& params, const Plan& plan, void* stream) {
  return start_tile<Cell::kLstm>(params, plan, stream, [](auto tile) {
    return std::pair(&recurrence_forward<tile>, forward_shape(kTiles[tile]));
  });
}

int resident_clusters_of(int size) {
  int count = 0;
  each_tile<Cell::kLstm>([&](auto tile) {
    if constexpr (kTiles[tile].cluster > 1) {
      constexpr Shape kShape = forward_shape(kTiles[tile]);
      if (kTiles[tile].cluster == size && count == 0)
        count =
            resident_clusters(&recurrence_forward<tile>, kShape.threads, size, kShape.shared_bytes);
    }
  });
  return count;
}

}  // namespace fusedrnn::cuda

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
  auto ask = [&]<int kTile>(std::integral_constant<int, kTile>) {
    if constexpr (kTiles[kTile].cell == Cell::kLstm && kTiles[kTile].cluster > 1) {
      constexpr Shape kShape = forward_shape(kTiles[kTile]);
      if (kTiles[kTile].cluster == size && count == 0)
        count = resident_clusters(&recurrence_forward<kTile>, kShape.threads, size,
                                  kShape.shared_bytes);
    }
  };
  [&]<int... kTile>(std::integer_sequence<int, kTile...>) {
    (ask(std::integral_constant<int, kTile>{}), ...);
  }(std::make_integer_sequence<int, kTileCount>{});
  return count;
}

}  // namespace fusedrnn::cuda

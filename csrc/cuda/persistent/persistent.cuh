// Starts the persistent kernel that a plan names. Instantiated per family of cells and pass, in a
// source each.
#pragma once

#include <utility>

#include "cuda/launch.cuh"
#include "cuda/persistent/persistent.h"

namespace fusedrnn::cuda {

// Calls each(tile) for every tile of kFamily, as a constant; no other one is instantiated.
template <Cell kFamily, class Each>
void each_tile(Each each) {
  auto offer = [&]<int kOne>(std::integral_constant<int, kOne> one) {
    if constexpr (kTiles[kOne].cell == kFamily) each(one);
  };
  [&]<int... kTile>(std::integer_sequence<int, kTile...>) {
    (offer(std::integral_constant<int, kTile>{}), ...);
  }(std::make_integer_sequence<int, kTileCount>{});
}

// Calls start(tile) with the plan's tile as a constant.
template <Cell kFamily, class Start>
int with_tile(int tile, Start start) {
  int error = kNoSuchTile;
  each_tile<kFamily>([&](auto one) {
    if (tile == one) error = start(one);
  });
  return error;
}

template <Cell kFamily, class Params, class Start>
int start_tile(const Params& params, const Plan& plan, void* stream, Start start) {
  if (params.problem.B == 0) return 0;
  return with_tile<kFamily>(plan.tile, [&](auto tile) {
    constexpr Tile kTile = kTiles[tile];
    const auto [kernel, shape] = start(tile);
    const int64_t groups = (params.problem.B + kTile.rows - 1) / kTile.rows;
    return launch(kernel, params, groups * kTile.cluster, params.directions, shape.threads,
                  kTile.cluster, shape.shared_bytes, stream);
  });
}

}  // namespace fusedrnn::cuda

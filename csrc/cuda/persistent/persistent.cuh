// Starts the persistent kernel that a plan names. Instantiated per family of cells and pass, in a
// source each.
#pragma once

#include <utility>

#include "cuda/launch.cuh"
#include "cuda/persistent/persistent.h"

namespace fusedrnn::cuda {

// Calls start(tile) with the plan's tile as a constant; only those of kFamily are instantiated.
template <Cell kFamily, class Start, int... kTile>
int with_tile(int tile, Start start, std::integer_sequence<int, kTile...>) {
  int error = kNoSuchTile;
  auto offer = [&]<int kOne>(std::integral_constant<int, kOne> one) {
    if constexpr (kTiles[kOne].cell == kFamily)
      if (tile == kOne) error = start(one);
  };
  (offer(std::integral_constant<int, kTile>{}), ...);
  return error;
}

template <Cell kFamily, class Params, class Start>
int start_tile(const Params& params, const Plan& plan, void* stream, Start start) {
  if (params.problem.B == 0) return 0;
  return with_tile<kFamily>(
      plan.tile,
      [&](auto tile) {
        constexpr Tile kTile = kTiles[tile];
        const auto [kernel, shape] = start(tile);
        const int64_t groups = (params.problem.B + kTile.rows - 1) / kTile.rows;
        return launch(kernel, params, groups * kTile.cluster, params.directions, shape.threads,
                      kTile.cluster, shape.shared_bytes, stream);
      },
      std::make_integer_sequence<int, kTileCount>{});
}

}  // namespace fusedrnn::cuda

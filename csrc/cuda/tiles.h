// The persistent kernels there are, and how each is cut up: one table, read by the plan that picks
// a row of it, by the kernels that are built from it and by the tests that hold the compiler's
// figures to it. Host and device code; no CUDA headers.
#pragma once

#include "cuda/plan.h"

namespace fusedrnn::cuda {

// W_hh stays on chip for the whole sequence: shared by the `cluster` blocks that advance `rows`
// batch rows together. A thread keeps `registers` float4 of its weights in registers, the rest of
// them lies in shared memory. `lanes` threads of a warp split each sum.
struct Cut {
  int lanes;
  int registers;
};

struct Tile {
  Cell cell;  // a family, see CellSpec
  int hidden;
  int cluster;
  int rows;
  Cut forward, backward;
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// What follows from a row of the table. Forward, a thread makes all gates of units_of_thread()
// hidden units; backward, the gradient of h at 8 units. `quads` counts a thread's float4 of
// weights.
struct Shape {
  int threads;
  int units;       // hidden units of a block
  int outputs;     // sums of a thread for one batch row
  int sum_quads;   // float4 in a whole sum
  int lane_quads;  // of these, a lane's, the last lanes' padded with zeros
  int quads;
  int shared_quads;
  int row_quads;  // float4 from a batch row's operands of the sums to the next one's
  int64_t shared_bytes;

  // Of 65536, in four parts that each serve whole warps.
  constexpr int registers() const {
    const int most = 65536 / (ceil_div(threads, 128) * 128) / 8 * 8;
    return most > 255 ? 255 : most;
  }
};

// The most that is a power of two and makes 12 sums or fewer: LSTM 2, GRU 4, Elman 8.
constexpr int units_of_thread(Cell cell) {
  int units = 8;
  while (units * int(gates_of(cell)) > 12) units /= 2;
  return units;
}
constexpr int kBarrierBytes = 64;

constexpr Shape forward_shape(const Tile& tile) {
  Shape s{};
  s.units = tile.hidden / tile.cluster;
  s.outputs = units_of_thread(tile.cell) * int(gates_of(tile.cell));
  s.threads = s.units / units_of_thread(tile.cell) * tile.forward.lanes;
  s.sum_quads = tile.hidden / 4;
  s.lane_quads = ceil_div(s.sum_quads, tile.forward.lanes);
  s.quads = s.outputs * s.lane_quads;
  s.shared_quads = s.quads > tile.forward.registers ? s.quads - tile.forward.registers : 0;
  s.row_quads = s.lane_quads * tile.forward.lanes;
  // Two buffers of h.
  s.shared_bytes =
      int64_t(16) * (s.shared_quads * s.threads + 2 * tile.rows * s.row_quads) + kBarrierBytes;
  return s;
}

constexpr Shape backward_shape(const Tile& tile) {
  Shape s{};
  s.units = tile.hidden / tile.cluster;
  s.outputs = 8;
  s.threads = tile.hidden / s.outputs * tile.backward.lanes;
  s.sum_quads = int(gates_of(tile.cell)) * s.units / 4;
  s.lane_quads = ceil_div(s.sum_quads, tile.backward.lanes);
  s.quads = s.outputs * s.lane_quads;
  s.shared_quads = s.quads > tile.backward.registers ? s.quads - tile.backward.registers : 0;
  // In a cluster a warp writes gate gradients of 32 / rows units of every row: a shift between rows
  // gives each its own banks.
  s.row_quads =
      s.lane_quads * tile.backward.lanes + (tile.cluster > 1 && tile.rows > 1 ? 8 / tile.rows : 0);
  // Two buffers of gate gradients and, in a cluster, two of what every block sends.
  s.shared_bytes = int64_t(16) * (s.shared_quads * s.threads + 2 * tile.rows * s.row_quads) +
                   (tile.cluster > 1 ? 8 * tile.cluster * s.units * tile.rows : 0) + kBarrierBytes;
  return s;
}

// Registers: the most without spills (tests/cuda/test_cuda_compile.py), found by trial.
inline constexpr Tile kTiles[] = {
    //                H  blocks rows  forward  backward
    {Cell::kLstm, 32, 1, 1, {8, 8}, {16, 16}},
    {Cell::kLstm, 64, 1, 1, {4, 32}, {16, 32}},
    {Cell::kLstm, 64, 1, 2, {4, 32}, {16, 32}},
    {Cell::kLstm, 96, 1, 1, {4, 48}, {16, 48}},
    {Cell::kLstm, 96, 1, 2, {4, 48}, {16, 48}},
    {Cell::kLstm, 128, 1, 1, {4, 49}, {16, 44}},
    {Cell::kLstm, 128, 1, 2, {4, 44}, {16, 44}},
    {Cell::kLstm, 128, 1, 4, {4, 33}, {16, 36}},
    {Cell::kLstm, 128, 2, 1, {8, 32}, {16, 32}},
    {Cell::kLstm, 128, 4, 1, {16, 16}, {16, 16}},
    {Cell::kLstm, 160, 2, 1, {8, 29}, {16, 20}},
    {Cell::kLstm, 160, 2, 2, {8, 25}, {16, 20}},
    {Cell::kLstm, 192, 4, 1, {16, 24}, {16, 24}},
    {Cell::kLstm, 192, 4, 2, {16, 24}, {16, 24}},
    {Cell::kLstm, 256, 4, 1, {8, 52}, {8, 44}},
    {Cell::kLstm, 256, 4, 2, {8, 48}, {8, 40}},
    {Cell::kLstm, 256, 8, 1, {16, 32}, {8, 32}},
    {Cell::kLstm, 256, 8, 2, {16, 32}, {8, 32}},
    {Cell::kLstm, 256, 4, 4, {8, 38}, {8, 36}},
    {Cell::kLstm, 384, 16, 1, {16, 48}, {4, 48}},
    {Cell::kLstm, 384, 16, 2, {16, 46}, {4, 48}},
    {Cell::kLstm, 512, 16, 1, {16, 51}, {4, 44}},
    {Cell::kLstm, 512, 16, 2, {16, 48}, {4, 44}},
    {Cell::kLstm, 512, 16, 4, {16, 38}, {4, 36}},

    {Cell::kGru, 32, 1, 1, {8, 12}, {16, 16}},
    {Cell::kGru, 64, 1, 1, {8, 24}, {16, 24}},
    {Cell::kGru, 64, 1, 2, {8, 24}, {16, 24}},
    {Cell::kGru, 96, 1, 1, {8, 36}, {16, 40}},
    {Cell::kGru, 96, 1, 2, {8, 36}, {16, 40}},
    {Cell::kGru, 128, 1, 1, {8, 48}, {16, 48}},
    {Cell::kGru, 128, 1, 2, {8, 48}, {16, 48}},
    {Cell::kGru, 128, 1, 4, {8, 32}, {16, 36}},
    {Cell::kGru, 192, 2, 1, {16, 29}, {16, 24}},
    {Cell::kGru, 192, 2, 2, {16, 24}, {16, 24}},
    {Cell::kGru, 256, 4, 1, {16, 48}, {8, 48}},
    {Cell::kGru, 256, 4, 2, {16, 48}, {8, 48}},
    {Cell::kGru, 256, 4, 4, {16, 36}, {8, 36}},
    {Cell::kGru, 256, 8, 1, {32, 24}, {8, 24}},
    {Cell::kGru, 384, 8, 1, {32, 28}, {8, 24}},
    {Cell::kGru, 384, 8, 2, {32, 24}, {8, 24}},
    {Cell::kGru, 512, 16, 1, {32, 48}, {4, 48}},
    {Cell::kGru, 512, 16, 2, {32, 48}, {4, 48}},

    {Cell::kRnnTanh, 64, 1, 1, {16, 8}, {16, 8}},
    {Cell::kRnnTanh, 128, 1, 1, {16, 16}, {16, 16}},
    {Cell::kRnnTanh, 128, 1, 2, {16, 16}, {16, 16}},
    {Cell::kRnnTanh, 192, 1, 1, {8, 48}, {8, 48}},
    {Cell::kRnnTanh, 192, 1, 2, {8, 48}, {8, 48}},
    {Cell::kRnnTanh, 256, 1, 1, {8, 50}, {8, 48}},
    {Cell::kRnnTanh, 256, 1, 2, {8, 47}, {8, 44}},
    {Cell::kRnnTanh, 256, 1, 4, {8, 35}, {8, 28}},
    {Cell::kRnnTanh, 256, 2, 1, {16, 32}, {8, 32}},
    {Cell::kRnnTanh, 384, 4, 1, {16, 48}, {4, 48}},
    {Cell::kRnnTanh, 512, 4, 1, {16, 53}, {4, 44}},
    {Cell::kRnnTanh, 512, 4, 2, {16, 49}, {4, 44}},
    {Cell::kRnnTanh, 512, 8, 1, {32, 32}, {4, 32}},

    {Cell::kMgu, 32, 1, 1, {8, 8}, {16, 8}},
    {Cell::kMgu, 64, 1, 1, {8, 16}, {16, 16}},
    {Cell::kMgu, 128, 1, 1, {8, 32}, {16, 32}},
    {Cell::kMgu, 128, 1, 2, {8, 32}, {16, 32}},
    {Cell::kMgu, 160, 1, 1, {8, 25}, {16, 24}},
    {Cell::kMgu, 256, 4, 1, {16, 32}, {8, 32}},
    {Cell::kMgu, 256, 4, 2, {16, 32}, {8, 32}},
    {Cell::kMgu, 512, 8, 1, {16, 48}, {4, 44}},
    {Cell::kMgu, 512, 8, 2, {16, 48}, {4, 44}},
};
inline constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);
static_assert(kTileCount <= 64);  // Experience has a bit for each

}  // namespace fusedrnn::cuda

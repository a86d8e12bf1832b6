// The backward recurrence over a cluster of blocks. Each holds the rows of W_hh of its own units,
// as going forward, and multiplies them with its own gate gradients: its share of the gradient of
// every unit of h. Shares go to the block that owns the unit, which adds them up in a fixed order:
// H floats a row and block instead of the 4H gate gradients that gathering would take.
#pragma once

#include "cuda/persistent/backward.cuh"

namespace fusedrnn::cuda {

template <int kTile>
struct BackwardCluster : BackwardTile<kTile> {
  using Base = BackwardTile<kTile>;
  using Split = typename Base::Split;
  using State = BackwardState<Base::kCell>;
  static constexpr int kRows = Base::kRows, kThreads = Base::kThreads, kUnits = Base::kUnits;
  static constexpr int kGates = Base::kGates, kRowQuads = Base::kRowQuads;
  static constexpr int kCluster = Base::kCluster, kOutputs = Base::kOutputs;
  static constexpr int kBufferSize = kRows * kRowQuads * 4;
  static constexpr int kCells = kUnits * kRows;         // one a thread, of the first threads
  static constexpr int kStates = Split::kStates;        // sums of a lane, side by side in a share
  static constexpr int kBytes = kCluster * kCells * 4;  // that a block receives a step
  static_assert(kCells <= kThreads && kUnits % kOutputs == 0);

  static FUSEDRNN_DEVICE void run(const Backward& p) {
    const int H = int(p.problem.H), B = int(p.problem.B);
    const int begin = int(p.begin), count = int(p.end) - begin;
    const int thread = thread_index(), rank = cluster_rank();
    const int first_row = int(block_index() / kCluster) * kRows;
    const int direction = grid_row();
    const Split split(thread);
    float4* shared = reinterpret_cast<float4*>(shared_memory());
    float* buffers = reinterpret_cast<float*>(shared + Base::kShape.shared_quads * kThreads);
    float* shares = buffers + 2 * kBufferSize;  // [2][block][unit][row]
    uint64_t* barriers = reinterpret_cast<uint64_t*>(shares + 2 * kCluster * kCells);

    typename Base::ThreadWeights weights(shared, thread);
    Base::load(weights, split, static_cast<const float*>(p.direction[direction].w_hh), H, rank);
    clear(buffers, barriers, thread);
    weights.settle(count > 0 ? 1.0f : 0.0f);
    block_sync();
    cluster_sync();

    const bool has_cell = thread < kCells;
    const int row = thread % kRows, own_unit = thread / kRows, unit = rank * kUnits + own_unit;
    const Steps steps = State::steps_of(p, direction);
    State state(p, direction, first_row + row, unit, has_cell && first_row + row < B && unit < H);

    for (int step = 0; step < count; ++step) {  // from `begin` on
      const RowRange ahead = steps(begin + step + 3);
      const int even = step & 1;
      float* buffer = buffers + even * kBufferSize;
      if (has_cell) {
        if (step > 0) state.arrive(received(step, shares, barriers, thread));
        state.add_slope_of_c(p);
        float gates[kGates];
        state.step(p, true, gates);
#pragma unroll
        for (int g = 0; g < kGates; ++g)
          buffer[row * (kRowQuads * 4) + g * kUnits + own_unit] = gates[g];
      }
      block_sync();
      state.load_next(p);
      float sums[Split::kValues];
      Base::multiply(weights, split, buffer, sums);
      state.look_ahead(ahead);
      if (split.copy == 0) send_shares(split, rank, sums, shares, barriers, 1 - even);
    }
    if (has_cell) {
      if (count > 0) state.arrive(received(count, shares, barriers, thread));
      state.store_initial(p);
    }
    // Every send has been awaited; that no block leaves while others run is the rule for clusters
    // that reach into each other's memory, and costs nothing here.
    cluster_sync();
  }

 private:
  static FUSEDRNN_DEVICE void clear(float* buffers, uint64_t* barriers, int thread) {
    for (int i = thread; i < 2 * kBufferSize; i += kThreads) buffers[i] = 0;
    if (thread == 0) {
      for (int i = 0; i < 2; ++i) {
        barrier_init(barriers + i);
        barrier_arm(barriers + i, kBytes);
      }
    }
  }

  // The gradient of h at the thread's cell: the sum of all blocks' shares of it, once they are in.
  static FUSEDRNN_DEVICE float received(int step, const float* shares, uint64_t* barriers,
                                        int thread) {
    const int even = step & 1;
    barrier_wait(barriers + even, (step - 1) >> 1 & 1);
    if (thread == 0) barrier_arm(barriers + even, kBytes);  // for two steps on
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kCluster; ++k) sum += shares[(even * kCluster + k) * kCells + thread];
    return sum;
  }

  // The lane's sums to the block whose units they belong to, for the next step.
  static FUSEDRNN_DEVICE void send_shares(const Split& split, int rank,
                                          const float (&sums)[Split::kValues], float* shares,
                                          uint64_t* barriers, int other) {
    const int target = split.group * kOutputs / kUnits;
    const int first_cell = split.group * kOutputs % kUnits * kRows + split.first_pair;
    float* to = shares + (other * kCluster + rank) * kCells + first_cell;
    send_all(to, target, sums, barriers + other);
  }

  // The fewest sends there can be: up to four values each.
  static FUSEDRNN_DEVICE void send_all(float* to, int rank, const float (&values)[kStates],
                                       uint64_t* barrier) {
    if constexpr (kStates == 1) {
      send(to, rank, values[0], barrier);
    } else if constexpr (kStates == 2) {
      send(reinterpret_cast<float2*>(to), rank, make_float2(values[0], values[1]), barrier);
    } else {
#pragma unroll
      for (int i = 0; i < kStates; i += 4)
        send(reinterpret_cast<float4*>(to + i), rank,
             make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]), barrier);
    }
  }
};

template <int kTile>
FUSEDRNN_KERNEL(backward_shape(kTiles[kTile]).threads)
recurrence_backward(Backward p) {
  if constexpr (kTiles[kTile].cluster == 1) {
    BackwardBlock<kTile>::run(p);
  } else if constexpr (kHasClusters) {
    BackwardCluster<kTile>::run(p);
  }
}

}  // namespace fusedrnn::cuda

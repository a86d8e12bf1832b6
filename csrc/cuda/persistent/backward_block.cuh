// The backward recurrence where one block holds all of W_hh. The lane that ends with the sum for a
// unit of h is the one that takes the unit's cell a step back, so that a step has one barrier: gate
// gradients are written to one of two buffers, everyone waits, everyone multiplies.
#pragma once

#include <utility>

#include "cuda/persistent/backward.cuh"

namespace fusedrnn::cuda {

template <int kTile>
struct BackwardBlock : BackwardTile<kTile> {
  using Base = BackwardTile<kTile>;
  using Split = typename Base::Split;
  using State = BackwardState<Base::kCell>;
  static constexpr int kStates = Split::kStates, kRows = Base::kRows, kThreads = Base::kThreads;
  static constexpr int kGates = Base::kGates, kUnits = Base::kUnits, kRowQuads = Base::kRowQuads;
  static constexpr int kBufferSize = kRows * kRowQuads * 4;

  static FUSEDRNN_DEVICE void run(const Backward& p) {
    const int H = int(p.problem.H), B = int(p.problem.B);
    const int begin = int(p.begin), end = int(p.end);
    const int thread = thread_index(), first_row = int(block_index()) * kRows;
    const int direction = grid_row();
    const Split split(thread);
    float4* shared = reinterpret_cast<float4*>(shared_memory());
    float* buffers = reinterpret_cast<float*>(shared + Base::kShape.shared_quads * kThreads);

    typename Base::ThreadWeights weights(shared, thread);
    Base::load(weights, split, static_cast<const float*>(p.direction[direction].w_hh), H, 0);
    for (int i = thread; i < 2 * kBufferSize; i += kThreads) buffers[i] = 0;
    weights.settle(end > begin ? 1.0f : 0.0f);
    block_sync();

    // State i is unit i / kRows and row i % kRows from the lane's first on.
    const int my_unit = split.group * Base::kOutputs + split.first_pair / kRows;
    const int my_row = split.first_pair % kRows;
    auto make_state = [&](int i) {
      const int unit = my_unit + i / kRows, row = first_row + my_row + i % kRows;
      return State(p, direction, row, unit, row < B && unit < H);
    };
    auto make_states = [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
      return States{{make_state(kIndex)...}};
    };
    States states = make_states(std::make_integer_sequence<int, kStates>{});

    const Steps steps = State::steps_of(p, direction);
    for (int step = begin; step < end; ++step) {
      const RowRange ahead = steps(step + 3);
      float* buffer = buffers + ((step - begin) & 1) * kBufferSize;
#pragma unroll
      for (int i = 0; i < kStates; ++i) states.of[i].add_slope_of_c(p);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        float gates[kGates];
        states.of[i].step(p, split.copy == 0, gates);
        if (split.copy == 0) {
          float* to = buffer + (my_row + i % kRows) * (kRowQuads * 4) + my_unit + i / kRows;
#pragma unroll
          for (int g = 0; g < kGates; ++g) to[g * kUnits] = gates[g];
        }
      }
      block_sync();
#pragma unroll
      for (int i = 0; i < kStates; ++i) states.of[i].load_next(p);
      float sums[Split::kValues];
      Base::multiply(weights, split, buffer, sums);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        states.of[i].arrive(sums[i]);
        states.of[i].look_ahead(ahead);
      }
    }
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (split.copy == 0) states.of[i].store_initial(p);
  }

 private:
  struct States {
    State of[kStates];
  };
};

}  // namespace fusedrnn::cuda

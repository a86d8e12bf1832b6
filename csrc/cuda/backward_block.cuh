// The backward recurrence where one block holds all of W_hh. The lane that ends with the sum for a
// unit of h is the one that takes the unit's cell a step back, so that a step has one barrier: gate
// gradients are written to one of two buffers, everyone waits, everyone multiplies.
#pragma once

#include "cuda/backward.cuh"

namespace fusedrnn::cuda {

template <int kTile>
struct BackwardBlock : BackwardTile<kTile> {
  using Base = BackwardTile<kTile>;
  using Split = typename Base::Split;
  using State = BackwardState<Base::kCell>;
  static constexpr int kStates = Split::kStates, kRows = Base::kRows, kThreads = Base::kThreads;
  static constexpr int kGates = Base::kGates, kUnits = Base::kUnits, kRowQuads = Base::kRowQuads;

  static FUSEDRNN_DEVICE void run(const Backward& p) {
    const int H = int(p.problem.H), thread = thread_index();
    const int64_t B = p.problem.B, T = p.problem.T;
    const int first_row = int(block_index()) * kRows;
    const Split split(thread);
    float4* shared = reinterpret_cast<float4*>(shared_memory());
    float* buffers = reinterpret_cast<float*>(shared + Base::kShape.shared_quads * kThreads);

    typename Base::ThreadWeights weights(shared, thread);
    Base::load(weights, split, static_cast<const float*>(p.direction[grid_row()].w_hh), H, 0);
    for (int i = thread; i < 2 * kRows * kRowQuads * 4; i += kThreads) buffers[i] = 0;
    weights.settle(T > 0 ? 1.0f : 0.0f);
    block_sync();

    const Steps steps{p.offsets, T, B, grid_row() == 0};
    auto pair_state = [&](int i) {
      const int pair = split.first_pair + i, unit = split.group * Base::kOutputs + pair / kRows;
      const int row = first_row + pair % kRows;
      State state(p, row, unit, row < B && unit < H);
      state.load_c(p, steps(0));
      state.load(p, steps(0), steps(1));
      return state;
    };
    auto each_state = [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
      return States{{pair_state(kIndex)...}};
    };
    States states = each_state(std::make_integer_sequence<int, kStates>{});

    for (int64_t step = 0; step < T; ++step) {
      float* buffer = buffers + (step & 1) * (kRows * kRowQuads * 4);
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const int pair = split.first_pair + i, unit = split.group * Base::kOutputs + pair / kRows;
        float gates[kGates];
        states.of[i].step(p, steps(step), split.copy == 0, gates);
        if (split.copy == 0) {
#pragma unroll
          for (int g = 0; g < kGates; ++g)
            buffer[pair % kRows * (kRowQuads * 4) + g * kUnits + unit] = gates[g];
        }
        states.of[i].load(p, steps(step + 1), steps(step + 2));
      }
      block_sync();
      float sums[Split::kValues];
      Base::multiply(weights, split, buffer, sums);
#pragma unroll
      for (int i = 0; i < kStates; ++i) states.of[i].arrive(sums[i]);
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

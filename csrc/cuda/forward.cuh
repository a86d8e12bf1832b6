// The forward recurrence in one launch: W_hh is read once and stays in registers and shared memory
// while all time steps pass. A block, or a cluster of blocks that share the hidden units, advances
// a few batch rows on its own; no block waits for one outside its cluster.
//
// A thread multiplies its rows of W_hh, all gates of a few units, with a lane's share of h; the
// lanes' sums are reduced so that each ends with the gates of its units and rows, where activation
// and state update follow in registers. h goes to every block of the cluster, into the buffer of
// the next step; everything stored for later overlaps with that step. One barrier a step.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/tile.cuh"

namespace fusedrnn::cuda {

template <int kTile>
struct ForwardKernel {
  static constexpr Tile kShapeOf = kTiles[kTile];
  static constexpr Shape kShape = forward_shape(kShapeOf);
  static constexpr Cell kCell = kShapeOf.cell;
  static constexpr int kGates = int(gates_of(kCell)), kUnits = units_of_thread(kCell);
  static constexpr int kRows = kShapeOf.rows, kLanes = kShapeOf.forward.lanes;
  static constexpr int kCluster = kShapeOf.cluster, kThreads = kShape.threads;
  static constexpr int kRowQuads = kShape.lane_quads * kLanes;  // float4 of a row of h
  static constexpr int kBytes = kRows * kShapeOf.hidden * 4;    // of h, a step

  using Split = LaneSplit<kUnits * kRows, kGates, kLanes>;
  using ThreadWeights = Weights<kShape.quads, kShape.shared_quads, kThreads, 1>;
  using CellType = typename CellOf<kCell>::Type;
  using Real = Scalar<float>;
  static constexpr int kStates = Split::kStates, kLaneGates = Split::kLaneGates;
  static constexpr int kSlots = CellType::kSlots;
  static constexpr int kTrainingSlots = int(slots_of(kCell, true));
  static constexpr int kLaneUnits = ceil_div(kStates, kRows);

  // One batch row's cell: h and c move on a step. `x` and `h_sum` are the lane's gates of the two
  // products; `kept` becomes what backward needs of them, in the order of memory.
  static FUSEDRNN_DEVICE void advance(const Split& split, bool relu, const float (&x)[kLaneGates],
                                      const float (&h_sum)[kLaneGates], float& h, float& c,
                                      float (&kept)[kSlots]) {
    Real slots[kSlots], next = 0, state = c;
    if constexpr (kLaneGates == kGates) {
      Real from_x[kGates], from_h[kGates];
#pragma unroll
      for (int g = 0; g < kGates; ++g) from_x[g] = x[g], from_h[g] = h_sum[g];
      assemble<kCell>(from_x, from_h, slots);
      if constexpr (kCell == Cell::kRnnTanh) {
        next = relu ? Rnn<true>::forward(slots, Real(h), state)
                    : Rnn<false>::forward(slots, Real(h), state);
      } else {
        next = CellType::forward(slots, Real(h), state);
      }
#pragma unroll
      for (int i = 0; i < kSlots; ++i) kept[i] = slots[slot_at<kCell>(i)].v;
    } else {
      float gates[kGates];
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g)
        kept[g] = activate(split.first_gate + g == 2, x[g] + h_sum[g]).v;
      float own[kLaneGates];
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g) own[g] = kept[g];
      split.gather(own, gates);
#pragma unroll
      for (int g = 0; g < kGates; ++g) slots[g] = gates[g];
      next = CellType::update(slots, state);
    }
    h = next.v;
    c = state.v;
  }

  template <bool kAligned>
  static FUSEDRNN_DEVICE void load(ThreadWeights& weights, const Split& split, const float* w_hh,
                                   int H, int first_unit) {
    weights.fill([&](int q) {
      const int output = q % kShape.outputs, gate = output % kGates;
      const int unit = first_unit + output / kGates;
      const int column = (q / kShape.outputs * kLanes + split.lane) * 4;
      weights.set(q, load_quad<kAligned>(w_hh, int64_t(gate) * H + unit, column, H, unit < H));
    });
  }

  static FUSEDRNN_DEVICE void run(const Forward& p) {
    const ForwardDirection& io = p.direction[grid_row()];
    const float* w_hh = static_cast<const float*>(io.w_hh);
    const float* b_hh = static_cast<const float*>(io.b_hh);
    const float* h0 = static_cast<const float*>(io.h0);
    const float* c0 = static_cast<const float*>(io.c0);
    float* slots = static_cast<float*>(io.slots);
    float* y = static_cast<float*>(io.y);
    float* kept_c = static_cast<float*>(io.c);
    const int H = int(p.problem.H);
    const int64_t B = p.problem.B, T = p.problem.T;
    const bool training = p.problem.training, relu = p.problem.cell == Cell::kRnnRelu;
    const int64_t slots_row = (training ? kTrainingSlots : kGates) * H;

    const int thread = thread_index();
    const Split split(thread);
    const int rank = kCluster > 1 ? cluster_rank() : 0;
    const int first_row = int(block_index() / kCluster) * kRows;
    const int first_unit = rank * kShape.units + split.group * kUnits;

    float4* shared = reinterpret_cast<float4*>(shared_memory());
    float* h_buffers = reinterpret_cast<float*>(shared + kShape.shared_quads * kThreads);
    uint64_t* barriers = reinterpret_cast<uint64_t*>(h_buffers + 2 * kRows * kRowQuads * 4);

    ThreadWeights weights(shared, thread);
    if (is_aligned(w_hh, H)) {
      load<true>(weights, split, w_hh, H, first_unit);
    } else {
      load<false>(weights, split, w_hh, H, first_unit);
    }
    // Columns past H stay zero in both buffers: their units never become active.
    for (int i = thread; i < 2 * kRows * kRowQuads * 4; i += kThreads) {
      const int64_t b = first_row + i / (kRowQuads * 4);
      const int column = i % (kRowQuads * 4);
      const bool given = h0 && i < kRows * kRowQuads * 4 && b < B && column < H;
      h_buffers[i] = given ? h0[b * H + column] : 0;
    }
    if constexpr (kCluster > 1) {
      if (thread == 0) {
        for (int i = 0; i < 2; ++i) {
          barrier_init(barriers + i);
          barrier_arm(barriers + i, kBytes);
        }
      }
      block_sync();
      cluster_sync();
    } else {
      block_sync();
    }
    weights.settle(T > 0 ? 1.0f : 0.0f);

    float c[kStates], h[kStates], x[kStates][kLaneGates];
    float bias[kLaneUnits][kLaneGates];
    int batch_row[kStates];
    int unit[kStates];
    const Steps steps{p.offsets, T, B, grid_row() == 1};
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int pair = split.first_pair + i;
      batch_row[i] = first_row + pair % kRows;
      unit[i] = first_unit + pair / kRows;
      const bool real = batch_row[i] < B && unit[i] < H;
      const int64_t at = int64_t(batch_row[i]) * H + unit[i];
      h[i] = real && h0 ? h0[at] : 0;
      c[i] = real && c0 ? c0[at] : 0;
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g)
        bias[i / kRows][g] = b_hh && unit[i] < H ? b_hh[(split.first_gate + g) * H + unit[i]] : 0;
    }
    auto load_x = [&](const StepRows& rows, int i, float (&to)[kLaneGates]) {
      const bool active = batch_row[i] < rows.count && unit[i] < H;
      const float* from = slots + (rows.first + batch_row[i]) * slots_row + unit[i];
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g) to[g] = active ? from[(split.first_gate + g) * H] : 0;
    };
#pragma unroll
    for (int i = 0; i < kStates; ++i) load_x(steps(0), i, x[i]);

    for (int64_t step = 0; step < T; ++step) {
      const int even = int(step & 1);
      const float* h_now = h_buffers + even * (kRows * kRowQuads * 4);
      float* h_next = h_buffers + (1 - even) * (kRows * kRowQuads * 4);
      if constexpr (kCluster > 1) {
        if (step > 0) {
          barrier_wait(barriers + even, int((step - 1) >> 1 & 1));
          if (thread == 0) barrier_arm(barriers + even, kBytes);  // for two steps on
        }
      }
      // After the wait, where the compiler would drain loads in flight.
      const StepRows next = steps(step + 1);
      float x_next[kStates][kLaneGates];
#pragma unroll
      for (int i = 0; i < kStates; ++i) load_x(next, i, x_next[i]);

      float parts[kUnits * kRows * kGates];
#pragma unroll
      for (int i = 0; i < kUnits * kRows * kGates; ++i) parts[i] = 0;
#pragma unroll
      for (int j = 0; j < kShape.lane_quads; ++j) {
        float4 column[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          column[r] =
              reinterpret_cast<const float4*>(h_now)[r * kRowQuads + j * kLanes + split.lane];
#pragma unroll
        for (int o = 0; o < kShape.outputs; ++o) {
          const float4 weight = weights.get(j * kShape.outputs + o);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            float& part = parts[(o / kGates * kRows + r) * kGates + o % kGates];
            part = dot(weight, column[r], part);
          }
        }
      }
      float sums[Split::kValues];
      split.reduce(parts, sums);

      const StepRows now = steps(step);
      float kept[kStates][kSlots];
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        float h_sum[kLaneGates], h_new = h[i], c_new = c[i];
#pragma unroll
        for (int g = 0; g < kLaneGates; ++g)
          h_sum[g] = sums[i * kLaneGates + g] + bias[i / kRows][g];
        advance(split, relu, x[i], h_sum, h_new, c_new, kept[i]);
        const bool active = batch_row[i] < now.count && unit[i] < H;
        h[i] = active ? h_new : h[i];
        c[i] = active ? c_new : c[i];
        float* to = h_next + (batch_row[i] - first_row) * (kRowQuads * 4) + unit[i];
        if constexpr (kCluster == 1) {
          if (split.copy == 0) *to = h[i];
        } else if (step + 1 < T) {
#pragma unroll
          for (int d = 0; d < kCluster; d += Split::kCopies) {
            const int target = d + split.copy;
            if (target < kCluster) send(to, target, h[i], barriers + (1 - even));
          }
        }
      }
      if constexpr (kCluster == 1) block_sync();

#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const bool active = batch_row[i] < now.count && unit[i] < H;
        const int64_t row = now.first + batch_row[i];
        if (active && split.copy == 0) {
          y[row * p.ldy + unit[i]] = h[i];
          if (CellType::kHasC && training) kept_c[row * H + unit[i]] = c[i];
        }
        if constexpr (CellType::kKeepsSlots) {
          constexpr int kOwn = kLaneGates == kGates ? kSlots : kLaneGates;
          if (active && training && split.owns_gates) {
            float* to = slots + row * slots_row + split.first_gate * H + unit[i];
#pragma unroll
            for (int s = 0; s < kOwn; ++s) to[s * H] = kept[i][s];
          }
        }
#pragma unroll
        for (int g = 0; g < kLaneGates; ++g) x[i][g] = x_next[i][g];
      }
    }
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      if (split.copy == 0 && batch_row[i] < B && unit[i] < H) {
        const int64_t at = int64_t(batch_row[i]) * H + unit[i];
        static_cast<float*>(io.h_n)[at] = h[i];
        if (CellType::kHasC) static_cast<float*>(io.c_n)[at] = c[i];
      }
    }
    // No block may leave while another still sends to it.
    if constexpr (kCluster > 1) cluster_sync();
  }
};

template <int kTile>
FUSEDRNN_KERNEL(forward_shape(kTiles[kTile]).threads)
recurrence_forward(Forward p) {
  if constexpr (kTiles[kTile].cluster == 1 || kHasClusters) ForwardKernel<kTile>::run(p);
}

}  // namespace fusedrnn::cuda

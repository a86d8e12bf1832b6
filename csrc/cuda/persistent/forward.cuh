// The forward recurrence in one launch: W_hh is read once and stays in registers and shared memory
// while all time steps pass. A block, or a cluster of blocks that share the hidden units, advances
// a few batch rows on its own; no block waits for one outside its cluster.
//
// A thread multiplies its rows of W_hh, all gates of a few units, with a lane's share of h; the
// lanes' sums are reduced so that each ends with the gates of its units and rows, where activation
// and state update follow in registers. h goes to every block of the cluster, into the buffer of
// the next step; everything stored for later overlaps with that step. One barrier a step.
//
// x is loaded a step ahead, into registers: 400 to 700 cycles before it is used (sm_90, simulated),
// enough for L2 (260 to 400) and not for device memory (650 to 800), where x lies once slots exceed
// L2. So a prefetch into L2 is sent three steps before that load. It takes neither registers over
// the step nor shared memory, of which a ring of x filled by cp.async would take 8 KB (more than is
// left to an LSTM of H=128 on compute capability 7.5) and which 7.5 could not fill. Not covered are
// the first four steps, and rows of a packed batch that the guess misses where sequences end.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/persistent/tile.cuh"

namespace fusedrnn::cuda {

template <int kTile>
struct ForwardKernel {
  static constexpr Tile kShapeOf = kTiles[kTile];
  static constexpr Shape kShape = forward_shape(kShapeOf);
  static constexpr Cell kCell = kShapeOf.cell;
  static constexpr int kGates = int(gates_of(kCell)), kUnits = units_of_thread(kCell);
  static constexpr int kRows = kShapeOf.rows, kLanes = kShapeOf.forward.lanes;
  static constexpr int kCluster = kShapeOf.cluster, kThreads = kShape.threads;
  static constexpr int kRowQuads = kShape.row_quads;
  static constexpr int kBufferSize = kRows * kRowQuads * 4;
  static constexpr int kBytes = kRows * kShapeOf.hidden * 4;  // of h, a step

  using Split = LaneSplit<kUnits * kRows, kGates, kLanes>;
  using ThreadWeights = Weights<kShape.quads, kShape.shared_quads, kThreads, 1>;
  using CellType = typename CellOf<kCell>::Type;
  using Real = Scalar<float>;
  static constexpr int kStates = Split::kStates, kLaneGates = Split::kLaneGates;
  static constexpr int kSlots = CellType::kSlots;
  static constexpr int kTrainingSlots = int(slots_of(kCell, true));
  static constexpr int kLaneUnits = ceil_div(kStates, kRows);
  // A lane of a cluster sends h of its unit to as many blocks as there are copies of it. Where that
  // is not all of them, four lanes share their units and the blocks: a fourth of the sends.
  static constexpr bool kSendsFour = kCluster > Split::kCopies;

  // One batch row's cell: h and c move on a step. `x` and `h_sum` are the lane's gates of the two
  // products; `kept` becomes what backward needs of them, in the order of memory.
  static FUSEDRNN_DEVICE void advance(const Split& split, bool second, const float (&x)[kLaneGates],
                                      const float (&h_sum)[kLaneGates], float& h, float& c,
                                      float (&kept)[kSlots]) {
    Real slots[kSlots], next = 0, state = c;
    if constexpr (kLaneGates == kGates) {
      Real from_x[kGates], from_h[kGates];
#pragma unroll
      for (int g = 0; g < kGates; ++g) from_x[g] = x[g], from_h[g] = h_sum[g];
      assemble<kCell>(from_x, from_h, slots);
      next = Family<kCell>::forward(second, slots, Real(h), state);
#pragma unroll
      for (int i = 0; i < kSlots; ++i) kept[i] = slots[slot_at<kCell>(i)].v;
    } else {
      float own[kLaneGates], gates[kGates];
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g)
        // Of two gates only the first can be the one that is a tanh.
        own[g] = kept[g] =
            activate(g == 0 && split.first_gate == CellType::kTanhGate, x[g] + h_sum[g]).v;
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
      const int column = (q / kShape.outputs * kLanes + known_here(split.lane)) * 4;
      weights.set(q, load_quad<kAligned>(w_hh, int64_t(gate) * H + unit, column, H, unit < H));
    });
  }

  static FUSEDRNN_DEVICE void multiply(const ThreadWeights& weights, const Split& split,
                                       const float* h, float (&sums)[Split::kValues]) {
    float parts[kUnits * kRows * kGates];
#pragma unroll
    for (int i = 0; i < kUnits * kRows * kGates; ++i) parts[i] = 0;
#pragma unroll
    for (int j = 0; j < kShape.lane_quads; ++j) {
      float4 column[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        column[r] = reinterpret_cast<const float4*>(h)[r * kRowQuads + j * kLanes + split.lane];
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
    split.reduce(parts, sums);
  }

  // h of a unit, or of its four units together, to every block of the cluster. `to` is the unit's.
  static FUSEDRNN_DEVICE void send_h(const Split& split, int unit, float* to, float h,
                                     uint64_t* barrier) {
    if constexpr (kSendsFour) {
      const float4 four = FourUnits<kUnits, Split::kStride>::gather(h, unit);
      const int sender = split.copy * 4 + unit % 4;
      float4* const all = reinterpret_cast<float4*>(to - unit % 4);
#pragma unroll
      for (int d = 0; d < kCluster; d += 4 * Split::kCopies)
        if (d + sender < kCluster) send(all, d + sender, four, barrier);
    } else if (split.copy < kCluster) {
      send(to, split.copy, h, barrier);
    }
  }

  static FUSEDRNN_DEVICE void load(ThreadWeights& weights, const Split& split, const float* w_hh,
                                   int H, int first_unit) {
    if (is_aligned(w_hh, H)) {
      load<true>(weights, split, w_hh, H, first_unit);
    } else {
      load<false>(weights, split, w_hh, H, first_unit);
    }
  }

  // h0 to the first of the two buffers of h. Columns past H stay zero in both: their units never
  // become active.
  static FUSEDRNN_DEVICE void fill_buffers(float* h_buffers, const float* h0, int first_row, int H,
                                           int B, int thread) {
    for (int i = thread; i < 2 * kBufferSize; i += kThreads) {
      const int b = first_row + i / (kRowQuads * 4), column = i % (kRowQuads * 4);
      const bool given = h0 && i < kBufferSize && b < B && column < H;
      h_buffers[i] = given ? at(h0, b, H)[column] : 0;
    }
  }

  static FUSEDRNN_DEVICE void begin_exchange(uint64_t* barriers, int thread) {
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
  }

  // Long because its registers ask for it. With its states as the members of an object and
  // prologue, step and epilogue as functions of that, the compiler orders the loads otherwise and
  // spills: 8 bytes of an LSTM of H=512 on 16 blocks, sm_90.
  static FUSEDRNN_DEVICE void run(const Forward& p) {
    const int direction = grid_row();
    const ForwardDirection& io = p.direction[direction];
    const float* w_hh = static_cast<const float*>(io.w_hh);
    const float* b_hh = static_cast<const float*>(io.b_hh);
    const float* h0 = static_cast<const float*>(io.h0);
    const float* c0 = static_cast<const float*>(io.c0);
    const int H = int(p.problem.H), B = int(p.problem.B), T = int(p.problem.T);
    const int ldy = int(p.ldy), ldc = int(p.ldc);
    const int begin = int(p.begin), end = int(p.end);
    const bool training = p.problem.training, second = p.problem.cell == Family<kCell>::kSecond;
    const int slots_row = (training ? kTrainingSlots : kGates) * H;

    const int thread = thread_index();
    const Split split(thread);
    const int rank = kCluster > 1 ? cluster_rank() : 0;
    const int first_row = int(block_index() / kCluster) * kRows;
    const int first_unit = rank * kShape.units + split.group * kUnits;

    float4* shared = reinterpret_cast<float4*>(shared_memory());
    float* h_buffers = reinterpret_cast<float*>(shared + kShape.shared_quads * kThreads);
    uint64_t* barriers = reinterpret_cast<uint64_t*>(h_buffers + 2 * kBufferSize);

    ThreadWeights weights(shared, thread);
    load(weights, split, w_hh, H, first_unit);
    fill_buffers(h_buffers, h0, first_row, H, B, thread);
    begin_exchange(barriers, thread);
    weights.settle(end > begin ? 1.0f : 0.0f);

    // State i is unit i / kRows and row i % kRows from the lane's first on.
    const int my_unit = first_unit + split.first_pair / kRows;
    const int my_row = first_row + split.first_pair % kRows;
    auto unit = [&](int i) { return my_unit + i / kRows; };
    auto batch_row = [&](int i) { return my_row + i % kRows; };
    auto real = [&](int i) { return batch_row(i) < B && unit(i) < H; };

    const Steps steps{p.offsets, T, B, direction == 1};
    float* my_slots = static_cast<float*>(io.slots) + split.first_gate * H + my_unit;
    float* my_y = static_cast<float*>(io.y) + my_unit;
    float* my_c = static_cast<float*>(io.c) + my_unit;
    auto row_of = [&](const RowRange& range, int i) {
      return range.row(unit(i) < H ? batch_row(i) : kPadding);
    };
    auto load_x = [&](int row, int i, float (&to)[kLaneGates]) {
      const float* from = at(my_slots, row, slots_row) + i / kRows;
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g) to[g] = load_if(row >= 0, from + g * H);
    };

    const int rows = steps.rows();
    auto prefetch_x = [&](int row, int i) {
      const float* from = at(my_slots, row, slots_row) + i / kRows;
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g) prefetch_if(row >= 0, from + g * H);
    };

    float bias[kLaneUnits][kLaneGates];
    // b_hh joins x, except where r comes between (GRU's n). At the end of the step before: used in
    // its own step, x would wait for the loads ahead, which are on the same scoreboard.
    auto settle_x = [&](int i, const float (&loaded)[kLaneGates], float (&to)[kLaneGates]) {
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g)
        to[g] = add_here(loaded[g], is_inner<kCell>(g) ? 0.0f : bias[i / kRows][g]);
    };

    float c[kStates], h[kStates], x[kStates][kLaneGates];
    int now[kStates], next[kStates];  // rows of x and y
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      h[i] = real(i) && h0 ? at(h0, batch_row(i), H)[unit(i)] : 0;
      c[i] = real(i) && c0 ? at(c0, batch_row(i), H)[unit(i)] : 0;
#pragma unroll
      for (int g = 0; g < kLaneGates; ++g)
        bias[i / kRows][g] = b_hh && unit(i) < H ? b_hh[(split.first_gate + g) * H + unit(i)] : 0;
      now[i] = row_of(steps(begin), i);
      next[i] = row_of(steps(begin + 1), i);
      load_x(now[i], i, x[i]);
      settle_x(i, x[i], x[i]);
    }

    for (int step = begin; step < end; ++step) {
      const int even = (step - begin) & 1;
      const float* h_now = h_buffers + even * kBufferSize;
      float* h_next = h_buffers + (1 - even) * kBufferSize;
      if constexpr (kCluster > 1) {
        if (step > begin) {
          barrier_wait(barriers + even, (step - begin - 1) >> 1 & 1);
          if (thread == 0) barrier_arm(barriers + even, kBytes);  // for two steps on
        }
      }
      // After the wait, where the compiler would drain loads in flight.
      float x_next[kStates][kLaneGates];
      const RowRange ahead = steps(step + 2);
#pragma unroll
      for (int i = 0; i < kStates; ++i) load_x(next[i], i, x_next[i]);

      float sums[Split::kValues];
      multiply(weights, split, h_now, sums);

      // Here, where registers are free again and the cells' latencies leave room.
#pragma unroll
      for (int i = 0; i < kStates; ++i) prefetch_x(row_ahead(now[i], next[i], rows), i);

      float kept[kStates][kSlots];
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        float h_sum[kLaneGates], h_new = h[i], c_new = c[i];
#pragma unroll
        for (int g = 0; g < kLaneGates; ++g)
          h_sum[g] = sums[i * kLaneGates + g] + (is_inner<kCell>(g) ? bias[i / kRows][g] : 0.0f);
        advance(split, second, x[i], h_sum, h_new, c_new, kept[i]);
        h[i] = now[i] >= 0 ? h_new : h[i];
        c[i] = now[i] >= 0 ? c_new : c[i];
        float* to = h_next + (batch_row(i) - first_row) * (kRowQuads * 4) + unit(i);
        if constexpr (kCluster == 1) {
          if (split.copy == 0) *to = h[i];
        } else if (step + 1 < end) {
          send_h(split, unit(i), to, h[i], barriers + (1 - even));
        }
      }
      if constexpr (kCluster == 1) block_sync();

#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        if (now[i] >= 0 && split.copy == 0) {
          at(my_y, now[i], ldy)[i / kRows] = h[i];
          if (CellType::kHasC && io.c) at(my_c, now[i], ldc)[i / kRows] = c[i];
        }
        if constexpr (CellType::kKeepsSlots) {
          constexpr int kOwn = kLaneGates == kGates ? kSlots : kLaneGates;
          if (now[i] >= 0 && training && split.owns_gates) {
            float* to = at(my_slots, now[i], slots_row) + i / kRows;
#pragma unroll
            for (int s = 0; s < kOwn; ++s) to[s * H] = kept[i][s];
          }
        }
        settle_x(i, x_next[i], x[i]);
        now[i] = next[i];
        next[i] = row_of(ahead, i);
      }
    }
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      if (split.copy == 0 && real(i)) {
        at(static_cast<float*>(io.h_n), batch_row(i), H)[unit(i)] = h[i];
        if (CellType::kHasC) at(static_cast<float*>(io.c_n), batch_row(i), H)[unit(i)] = c[i];
      }
    }
    // Every send has been awaited; that no block leaves while others run is the rule for clusters
    // that reach into each other's memory, and costs nothing here.
    if constexpr (kCluster > 1) cluster_sync();
  }
};

template <int kTile>
FUSEDRNN_KERNEL(forward_shape(kTiles[kTile]).threads)
recurrence_forward(Forward p) {
  if constexpr (kTiles[kTile].cluster == 1 || kHasClusters) ForwardKernel<kTile>::run(p);
}

}  // namespace fusedrnn::cuda

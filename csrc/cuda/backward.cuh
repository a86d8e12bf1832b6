// What both backward recurrences do for one hidden unit of one batch row: read ahead what the cell
// needs of a time step, turn the gradient of h into the gradients of its slots, store those, and
// carry on what reaches the step before without passing through W_hh.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/tile.cuh"

namespace fusedrnn::cuda {

template <Cell kCell>
class BackwardState {
 public:
  using CellType = typename CellOf<kCell>::Type;
  using Real = Scalar<float>;
  static constexpr int kGates = int(gates_of(kCell)), kSlots = CellType::kSlots;

  // Row `batch_row`, hidden unit `unit`; `real` is false past the end of either.
  FUSEDRNN_DEVICE BackwardState(const Backward& p, int batch_row, int unit, bool real)
      : batch_row_(batch_row), unit_(unit), real_(real) {
    const BackwardDirection& io = p.direction[grid_row()];
    dh_ = at_end(io.dh_n, p.problem.H);
    dc_ = at_end(io.dc_n, p.problem.H);
  }

  // Values of the step whose rows are `now`; `before` are those of the step it was computed from.
  FUSEDRNN_DEVICE void load(const Backward& p, const StepRows& now, const StepRows& before) {
    const BackwardDirection& io = p.direction[grid_row()];
    const int64_t H = p.problem.H;
    const bool active = real_ && batch_row_ < now.count;
    const bool continued = real_ && batch_row_ < before.count;
    const int64_t row = now.first + batch_row_, row_before = before.first + batch_row_;
    dy_ = active && io.dy ? static_cast<const float*>(io.dy)[row * p.lddy + unit_] : 0;
    if constexpr (CellType::kKeepsSlots) {
      const float* from = static_cast<const float*>(io.slots) + row * kSlots * H + unit_;
#pragma unroll
      for (int i = 0; i < kSlots; ++i) slots_[i] = active ? from[i * H] : 0;
    } else {
      h_ = active ? static_cast<const float*>(io.y)[row * p.ldy + unit_] : 0;
    }
    if constexpr (CellType::kHasC) {
      const float* c = static_cast<const float*>(io.c);
      c_before_ = continued ? c[row_before * H + unit_] : active ? at_end(io.c0, H) : 0;
    }
    if constexpr (CellType::kUsesPreviousH) {
      const float* y = static_cast<const float*>(io.y);
      h_ = continued ? y[row_before * p.ldy + unit_] : active ? at_end(io.h0, H) : 0;
    }
  }
  // c of the first step taken; that of each later one is the c_before of the one taken before it.
  FUSEDRNN_DEVICE void load_c(const Backward& p, const StepRows& now) {
    const float* c = static_cast<const float*>(p.direction[grid_row()].c);
    const bool active = real_ && batch_row_ < now.count;
    if constexpr (CellType::kHasC)
      c_ = active ? c[(now.first + batch_row_) * p.problem.H + unit_] : 0;
  }

  // Takes the step: `gates` are the gradients of h W_hh', in torch's order; zeros where the row has
  // no such step. Gradients of the slots go to memory if `store`.
  FUSEDRNN_DEVICE void step(const Backward& p, const StepRows& now, bool store,
                            float (&gates)[kGates]) {
    const bool active = real_ && batch_row_ < now.count;
    Real slots[kSlots], dh = dh_ + dy_, dc = dc_;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) slots[slot_at<kCell>(i)] = slots_[i];
    const Real h = h_, c = c_, c_before = c_before_;
    if (kCell == Cell::kRnnTanh && p.problem.cell == Cell::kRnnRelu) {
      if constexpr (kCell == Cell::kRnnTanh) Rnn<true>::backward(slots, h, h, c_before, c, dh, dc);
    } else {
      CellType::backward(slots, h, h, c_before, c, dh, dc);
    }
#pragma unroll
    for (int g = 0; g < kGates; ++g) gates[g] = active ? slots[recurrent_slot<kCell>(g)].v : 0;
    unweighted_ = active ? dh.v : dh_;
    dc_ = active ? dc.v : dc_;
    c_ = c_before_;  // also of a row whose first step, going back, is the next one
    if (active && store) {
      const int64_t H = p.problem.H;
      float* to = static_cast<float*>(p.direction[grid_row()].dslots) +
                  (now.first + batch_row_) * kSlots * H + unit_;
#pragma unroll
      for (int i = 0; i < kSlots; ++i) to[i * H] = slots[slot_at<kCell>(i)].v;
    }
  }
  // `weighted`: what reaches h of the step before through W_hh.
  FUSEDRNN_DEVICE void arrive(float weighted) { dh_ = unweighted_ + weighted; }

  FUSEDRNN_DEVICE void store_initial(const Backward& p) const {
    const BackwardDirection& io = p.direction[grid_row()];
    if (!real_) return;
    const int64_t at = int64_t(batch_row_) * p.problem.H + unit_;
    if (io.dh0) static_cast<float*>(io.dh0)[at] = dh_;
    if (CellType::kHasC && io.dc0) static_cast<float*>(io.dc0)[at] = dc_;
  }

 private:
  FUSEDRNN_DEVICE float at_end(const void* state, int64_t H) const {
    return real_ && state ? static_cast<const float*>(state)[int64_t(batch_row_) * H + unit_] : 0;
  }

  int batch_row_;
  int unit_;
  bool real_;
  float dh_, dc_, unweighted_ = 0;
  float slots_[kSlots], dy_ = 0, c_ = 0, c_before_ = 0;
  float h_ = 0;  // an Elman cell's output, or the h before of a GRU
};

// Gate gradients times W_hh, and the rows that a step further back needs: the part of a backward
// kernel that knows its tile.
template <int kTile>
struct BackwardTile {
  static constexpr Tile kShapeOf = kTiles[kTile];
  static constexpr Shape kShape = backward_shape(kShapeOf);
  static constexpr Cell kCell = kShapeOf.cell;
  static constexpr int kGates = int(gates_of(kCell)), kRows = kShapeOf.rows;
  static constexpr int kLanes = kShapeOf.backward.lanes, kCluster = kShapeOf.cluster;
  static constexpr int kThreads = kShape.threads, kUnits = kShape.units;
  static constexpr int kOutputs = kShape.outputs;
  static constexpr int kRowQuads = kShape.lane_quads * kLanes;  // float4 of a row of gate gradients

  using Split = LaneSplit<kOutputs * kRows, 1, kLanes>;
  using ThreadWeights = Weights<kShape.quads, kShape.shared_quads, kThreads, 4>;

  // Of the sums over gate gradients [gate][unit of this block], the thread's: columns of W_hh.
  static FUSEDRNN_DEVICE void load(ThreadWeights& weights, const Split& split, const float* w_hh,
                                   int H, int rank) {
    if (is_aligned(w_hh, H)) {
      load<true>(weights, split, w_hh, H, rank);
    } else {
      load<false>(weights, split, w_hh, H, rank);
    }
  }

  template <bool kAligned>
  static FUSEDRNN_DEVICE void load(ThreadWeights& weights, const Split& split, const float* w_hh,
                                   int H, int rank) {
    weights.fill([&](int q) {
      const int quad = q / kOutputs * kLanes + split.lane;
      const int column = split.group * kOutputs + q % kOutputs;
      const int gate = quad * 4 / kUnits, unit = rank * kUnits + quad * 4 % kUnits;
      float4 rows[4];
#pragma unroll
      for (int e = 0; e < 4; ++e)
        rows[e] = load_quad<kAligned>(w_hh, int64_t(gate) * H + unit + e, column, H,
                                      gate < kGates && unit + e < H);
      const auto& [a, b, c, d] = rows;
      weights.set(q, make_float4(a.x, b.x, c.x, d.x));
      weights.set(q + 1, make_float4(a.y, b.y, c.y, d.y));
      weights.set(q + 2, make_float4(a.z, b.z, c.z, d.z));
      weights.set(q + 3, make_float4(a.w, b.w, c.w, d.w));
    });
  }

  static FUSEDRNN_DEVICE void multiply(const ThreadWeights& weights, const Split& split,
                                       const float* gates, float (&sums)[Split::kValues]) {
    float parts[kOutputs * kRows];
#pragma unroll
    for (int i = 0; i < kOutputs * kRows; ++i) parts[i] = 0;
#pragma unroll
    for (int j = 0; j < kShape.lane_quads; ++j) {
      float4 gate[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        gate[r] = reinterpret_cast<const float4*>(gates)[r * kRowQuads + j * kLanes + split.lane];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const float4 weight = weights.get(j * kOutputs + o);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          parts[o * kRows + r] = dot(weight, gate[r], parts[o * kRows + r]);
      }
    }
    split.reduce(parts, sums);
  }
};

}  // namespace fusedrnn::cuda

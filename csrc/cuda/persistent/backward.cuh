// What both backward recurrences do for one hidden unit of one batch row: read ahead what the cell
// needs of a time step, turn the gradient of h into the gradients of its slots, store those, and
// carry on what reaches the step before without passing through W_hh.
#pragma once

#include "cuda/cell.cuh"
#include "cuda/persistent/tile.cuh"

namespace fusedrnn::cuda {

template <Cell kCell>
class BackwardState {
 public:
  using CellType = typename CellOf<kCell>::Type;
  using Real = Scalar<float>;
  static constexpr int kGates = int(gates_of(kCell)), kSlots = CellType::kSlots;

  // Row `batch_row`, hidden unit `unit`; `real` is false past the end of either.
  FUSEDRNN_DEVICE BackwardState(const Backward& p, int direction, int batch_row, int unit,
                                bool real)
      : direction_(direction), batch_row_(real ? batch_row : kPadding), unit_(unit) {
    const BackwardDirection& io = p.direction[direction_];
    dh_ = state(io.dh_n, p);
    dc_ = state(io.dc_n, p);
    const Steps steps = steps_of(p, direction);
    const int begin = int(p.begin);
    now_ = steps(begin).row(batch_row_);
    next_ = steps(begin + 1).row(batch_row_);
    after_ = steps(begin + 2).row(batch_row_);
    if constexpr (CellType::kHasC)
      c_ = load_if(now_ >= 0, at(column(io.c), now_, int(p.problem.H)));
    load(p, now_, next_);
  }

  // The last steps first.
  static FUSEDRNN_DEVICE Steps steps_of(const Backward& p, int direction) {
    return {p.offsets, int(p.problem.T), int(p.problem.B), direction == 0};
  }

  // Adds the gradient that c of the step has as a result, of all states before the first one takes
  // the step. Prefetched, not loaded ahead: for one more register while the product runs there is
  // no room (an LSTM of H=128, 4 rows, spills 52 bytes, sm_90a).
  FUSEDRNN_DEVICE void add_slope_of_c(const Backward& p) {
    if constexpr (CellType::kHasC) {
      const void* dc = p.direction[direction_].dc;
      const int lddc = int(p.lddc);
      dc_ += load_if(dc && now_ >= 0, at(column(dc), now_, lddc));
      prefetch_if(dc && next_ >= 0, at(column(dc), next_, lddc));
    }
  }

  // Takes the step: `gates` are the gradients of h W_hh', in torch's order; zeros where the row has
  // no such step. Gradients of the slots go to memory if `store`.
  FUSEDRNN_DEVICE void step(const Backward& p, bool store, float (&gates)[kGates]) {
    const bool active = now_ >= 0;
    const int H = int(p.problem.H);
    Real slots[kSlots], dh = dh_ + dy_, dc = dc_;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) slots[slot_at<kCell>(i)] = slots_[i];
    const Real h = h_, c = c_, c_before = c_before_;
    Family<kCell>::backward(p.problem.cell == Family<kCell>::kSecond, slots, h, h, c_before, c, dh,
                            dc);
#pragma unroll
    for (int g = 0; g < kGates; ++g) gates[g] = active ? slots[recurrent_slot<kCell>(g)].v : 0;
    unweighted_ = active ? dh.v : dh_;
    dc_ = active ? dc.v : dc_;
    c_ = c_before_;  // also of a row whose first step, going back, is the next one
    if (active && store) {
      float* to = at(static_cast<float*>(p.direction[direction_].dslots) + unit_, now_, kSlots * H);
#pragma unroll
      for (int i = 0; i < kSlots; ++i) to[i * H] = slots[slot_at<kCell>(i)].v;
    }
  }
  // Starts on the next step. Not to be called on some threads only: values from loads inside a
  // branch are moved at its end, and the move waits for the load.
  FUSEDRNN_DEVICE void load_next(const Backward& p) {
    load(p, next_, after_);
    now_ = next_;
    next_ = after_;
  }
  // `weighted`: what reaches h of the step before through W_hh.
  FUSEDRNN_DEVICE void arrive(float weighted) { dh_ = unweighted_ + weighted; }
  // Of the step three on from the one taken.
  FUSEDRNN_DEVICE void look_ahead(const RowRange& range) { after_ = range.row(batch_row_); }

  FUSEDRNN_DEVICE void store_initial(const Backward& p) const {
    const BackwardDirection& io = p.direction[direction_];
    const int H = int(p.problem.H);
    if (batch_row_ == kPadding) return;
    if (io.dh0) at(static_cast<float*>(io.dh0) + unit_, batch_row_, H)[0] = dh_;
    if (CellType::kHasC && io.dc0) at(static_cast<float*>(io.dc0) + unit_, batch_row_, H)[0] = dc_;
  }

 private:
  FUSEDRNN_DEVICE const float* column(const void* matrix) const {
    return static_cast<const float*>(matrix) + unit_;
  }
  // Of a [B, H] state; zero if there is none.
  FUSEDRNN_DEVICE float state(const void* states, const Backward& p) const {
    const bool given = states && batch_row_ != kPadding;
    return load_if(given, at(column(states), given ? batch_row_ : 0, int(p.problem.H)));
  }
  // Values of the step in row `now`; row `before` is that of the step it was computed from.
  FUSEDRNN_DEVICE void load(const Backward& p, int now, int before) {
    const BackwardDirection& io = p.direction[direction_];
    const int H = int(p.problem.H);
    dy_ = load_if(io.dy && now >= 0, at(column(io.dy), now, int(p.lddy)));
    if constexpr (CellType::kKeepsSlots) {
      const float* from = at(column(io.slots), now, kSlots * H);
#pragma unroll
      for (int i = 0; i < kSlots; ++i) slots_[i] = load_if(now >= 0, from + i * H);
    } else {
      h_ = load_if(now >= 0, at(column(io.y), now, int(p.ldy)));
    }
    if constexpr (CellType::kHasC) c_before_ = previous(io.c, H, io.c0, p, now, before);
    if constexpr (CellType::kUsesPreviousH) h_ = previous(io.y, int(p.ldy), io.h0, p, now, before);
  }
  // From the step before or, at the first, from the initial state.
  FUSEDRNN_DEVICE float previous(const void* kept, int stride, const void* initial,
                                 const Backward& p, int now, int before) const {
    const bool first = now >= 0 && before < 0;
    const float* from = first ? at(column(initial), batch_row_, int(p.problem.H))
                              : at(column(kept), before, stride);
    return load_if(first ? initial != nullptr : before >= 0, from);
  }

  int direction_;
  int batch_row_;  // kPadding: none
  int unit_;
  int now_, next_, after_;  // rows of x and y
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
  static constexpr int kRowQuads = kShape.row_quads;

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
      // Or the addresses of all of them would be made first, and spill.
      const int quad = q / kOutputs * kLanes + known_here(split.lane);
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

// The stepwise path's element-wise kernels: a cell over the rows of one time step, forward and
// back, for any size and dtype. The product with W_hh between two of them is the caller's. Threads
// walk along a row, so that every load and store of a warp is one piece of memory, and down the
// rows; no index is divided. Not vectorised: a step is a few microseconds of launches for most
// shapes, and where it is not, the four slots a thread reads at once keep memory busy.
#include "cuda/cell.cuh"
#include "cuda/launch.cuh"
#include "cuda/primitives.cuh"

namespace fusedrnn::cuda {
namespace {

constexpr int kThreads = 256;
// Over the whole grid: more than any GPU holds at once (8 blocks on each of 148 multiprocessors).
constexpr int64_t kBlocks = 2048;

// Of a block, 2^lane_bits threads lie along a row; grid rows cut longer rows into pieces.
template <class Arguments>
struct Elements {
  Arguments arguments;
  int64_t rows, columns;
  int lane_bits;
};

// Calls body(row, column) for the elements of this thread.
template <class Arguments, class Body>
FUSEDRNN_DEVICE void each_element(const Elements<Arguments>& e, const Body& body) {
  const int lane = thread_index() & ((1 << e.lane_bits) - 1);
  const int64_t column = (int64_t(grid_row()) << e.lane_bits) + lane;
  if (column >= e.columns) return;
  const int64_t first = (block_index() * kThreads + thread_index()) >> e.lane_bits;
  for (int64_t row = first; row < e.rows; row += grid_threads() >> e.lane_bits) body(row, column);
}

template <class Arguments>
int start(void (*kernel)(Elements<Arguments>), const Arguments& arguments, int64_t rows,
          int64_t columns, void* stream) {
  if (rows == 0 || columns == 0) return 0;
  Elements<Arguments> e{arguments, rows, columns, 0};
  while ((1 << e.lane_bits) < kThreads && (1 << e.lane_bits) < columns) ++e.lane_bits;
  const int64_t pieces = (columns + (1 << e.lane_bits) - 1) >> e.lane_bits;
  const int64_t wanted = ((rows << e.lane_bits) + kThreads - 1) / kThreads;
  const int64_t most = pieces < kBlocks ? kBlocks / pieces : 1;
  return launch(kernel, e, wanted < most ? wanted : most, int(pieces), kThreads, 1, 0, stream);
}

template <class T>
FUSEDRNN_DEVICE Scalar<T> load(const void* from, int64_t index) {
  return from ? static_cast<const T*>(from)[index] : T(0);
}
template <class T>
FUSEDRNN_DEVICE void store(void* to, int64_t index, Scalar<T> x) {
  if (to) static_cast<T*>(to)[index] = x.v;
}

template <class T, Cell kCell>
FUSEDRNN_KERNEL(kThreads)
forward_step(Elements<StepForward> e) {
  using C = typename CellOf<kCell>::Type;
  each_element(e, [&](int64_t row, int64_t unit) {
    const StepForward& a = e.arguments;
    const int64_t H = a.problem.H, state = row * H + unit;
    const int64_t slots = row * (a.problem.training ? C::kSlots : C::kGates) * H + unit;
    Scalar<T> of_x[C::kGates], of_h[C::kGates], s[C::kSlots], c(0), h_prev(0);
#pragma unroll
    for (int g = 0; g < C::kGates; ++g) {
      of_x[g] = load<T>(a.slots, slots + g * H);
      of_h[g] = load<T>(a.hw, (row * C::kGates + g) * H + unit) + load<T>(a.b_hh, g * H + unit);
    }
    if constexpr (C::kHasC) c = load<T>(a.c_state, state);
    if constexpr (C::kUsesPreviousH) h_prev = load<T>(a.h, state);
    assemble<kCell>(of_x, of_h, s);
    const Scalar<T> h = C::forward(s, h_prev, c);
    store(a.h, state, h);
    store(a.y, row * a.ldy + unit, h);
    if constexpr (C::kHasC) {
      store(a.c_state, state, c);
      store(a.c, row * a.ldc + unit, c);
    }
    if constexpr (C::kKeepsSlots) {
      if (!a.problem.training) return;
#pragma unroll
      for (int i = 0; i < C::kSlots; ++i) store(a.slots, slots + i * H, s[slot_at<kCell>(i)]);
    }
  });
}

template <class T, Cell kCell>
FUSEDRNN_KERNEL(kThreads)
backward_step(Elements<StepBackward> e) {
  using C = typename CellOf<kCell>::Type;
  each_element(e, [&](int64_t row, int64_t unit) {
    const StepBackward& a = e.arguments;
    const int64_t H = a.problem.H, state = row * H + unit, slots = row * C::kSlots * H + unit;
    const bool carried = row < a.rows_prev;
    Scalar<T> s[C::kSlots], h(0), h_prev(0), c_prev(0), c(0), dc(0);
    if constexpr (C::kKeepsSlots) {
#pragma unroll
      for (int i = 0; i < C::kSlots; ++i) s[slot_at<kCell>(i)] = load<T>(a.slots, slots + i * H);
    } else {
      h = load<T>(a.h, row * a.ldh + unit);
    }
    if constexpr (C::kUsesPreviousH) {
      h_prev = load<T>(carried ? a.h_prev : a.h0, carried ? row * a.ldh + unit : state);
    }
    if constexpr (C::kHasC) {
      c = load<T>(a.c, state);
      c_prev = load<T>(carried ? a.c_prev : a.c0, state);
      dc = load<T>(a.dc_state, state) + load<T>(a.dc, row * a.lddc + unit);
    }
    Scalar<T> dh = load<T>(a.dh, state) + load<T>(a.dy, row * a.lddy + unit);
    C::backward(s, h, h_prev, c_prev, c, dh, dc);
    store(a.dh, state, dh);
    if constexpr (C::kHasC) store(a.dc_state, state, dc);
#pragma unroll
    for (int i = 0; i < C::kSlots; ++i) store(a.dslots, slots + i * H, s[slot_at<kCell>(i)]);
    if constexpr (C::kSlots != C::kGates) {  // those of h W_hh', side by side for the product
#pragma unroll
      for (int g = 0; g < C::kGates; ++g) {
        store(a.dhw, (row * C::kGates + g) * H + unit, s[recurrent_slot<kCell>(g)]);
      }
    }
  });
}

// The step that a row of all steps together lies in.
FUSEDRNN_DEVICE int64_t step_of(const Rows& rows, int64_t row) {
  int64_t low = 0, high = rows.T;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (rows.offset(middle) <= row ? low : high) = middle;
  }
  return low;
}

template <class T>
FUSEDRNN_KERNEL(kThreads)
copy_previous_h(Elements<PreviousH> e) {
  each_element(e, [&](int64_t row, int64_t column) {
    const PreviousH& a = e.arguments;
    const Problem& p = a.problem;
    const Rows rows{p.T, p.B, a.offsets, p.reverse};
    const int64_t t = step_of(rows, row), b = row - rows.offset(t);
    // The row of y that it was computed from, or that of h0.
    const bool carried = b < rows.carried(t);
    const int64_t from = carried ? rows.offset(rows.before(t)) + b : b;
    store(a.h, row * p.P + column,
          carried ? load<T>(a.y, from * a.ldy + column) : load<T>(a.h0, from * p.P + column));
  });
}

template <class T>
int start_forward(const StepForward& a, void* stream) {
  return with_cell(a.problem.cell, [&](auto cell) {
    return start(forward_step<T, cell>, a, a.rows, a.problem.H, stream);
  });
}

template <class T>
int start_backward(const StepBackward& a, void* stream) {
  return with_cell(a.problem.cell, [&](auto cell) {
    return start(backward_step<T, cell>, a, a.rows, a.problem.H, stream);
  });
}

}  // namespace

int step_forward(const StepForward& params, void* stream) {
  return params.problem.dtypes.computed == DType::kFloat32 ? start_forward<float>(params, stream)
                                                           : start_forward<double>(params, stream);
}

int step_backward(const StepBackward& params, void* stream) {
  return params.problem.dtypes.computed == DType::kFloat32 ? start_backward<float>(params, stream)
                                                           : start_backward<double>(params, stream);
}

// Problem::offsets, on the host, has the number of rows; the kernel reads those on the device.
int previous_h(const PreviousH& params, void* stream) {
  const int64_t N = params.problem.rows().total(), P = params.problem.P;
  return params.problem.dtypes.computed == DType::kFloat32
             ? start(copy_previous_h<float>, params, N, P, stream)
             : start(copy_previous_h<double>, params, N, P, stream);
}

}  // namespace fusedrnn::cuda

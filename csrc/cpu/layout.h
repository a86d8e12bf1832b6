// Where things lie: panels, the reserve, and the workspace of each direction. Depends on the number
// of lanes only, so that the plan, the fake kernels and every variant agree.
//
// A panel is what one register tile makes: `unit_vectors` vectors of hidden units times the gates
// of the cell, padded to whole vectors. A step's rows of a panel hold `slots` vectors each.
// A chunk of `stretch` steps is laid out panel by panel, [panels][rows of the chunk][slots*lanes],
// so that a panel's rows are one contiguous run: what the products want.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cpu/params.h"

namespace fusedrnn::cpu {
namespace {  // compiled for several machines: see simd.h

constexpr int64_t kL2 = 512 << 10;   // bytes that a thread can count on
constexpr int kVectorsPerGroup = 4;  // columns of a product without gates come in groups of these

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t groups_of(int64_t columns, int lanes) {
  return (columns + kVectorsPerGroup * lanes - 1) / (kVectorsPerGroup * lanes);
}

struct Geometry {
  int lanes, unit_vectors, slots, vectors;  // slots and vectors of a whole panel
  int64_t panels;

  int64_t units() const { return int64_t(unit_vectors) * lanes; }
  int64_t width() const { return panels * units(); }  // H, padded
  int64_t row() const { return int64_t(slots) * lanes; }
  int64_t depth() const { return int64_t(vectors) * lanes; }
  int64_t whole_panels(int64_t H) const { return H / units(); }  // without padding

  // One gate leaves room for four vectors of units, unless the padding would cost a fourth more.
  Geometry(Cell cell, int64_t H, int lanes) : lanes(lanes) {
    const CellSpec& of = spec(cell);
    const bool wide = of.gates == 1 && round_up(H, 4 * lanes) * 4 <= round_up(H, lanes) * 5;
    unit_vectors = wide ? 4 : 1;
    slots = unit_vectors * of.slots;
    vectors = unit_vectors * of.gates;
    panels = (H + units() - 1) / units();
  }
};

// k steps of a block of a product. With AVX-512 a tile uses a weight vector 6 times, so L2 keeps up
// and longer blocks win (Zen 5, K=512: 128 steps 249, 256 steps 260, 512 steps 267 of 272 GFLOP/s);
// with 16 registers it is used 3 times, and the block has to stay in L1 (128 steps of NV = 4 are 16
// KB).
constexpr int64_t block_of(int64_t vector_bytes) { return vector_bytes == 64 ? 512 : 128; }
inline int64_t panels_of_block(const Geometry& g, int64_t element) {
  return std::max<int64_t>(block_of(g.lanes * element) / g.depth(), 1);
}

// Chunks hold about 256 rows: enough to amortise a pass over the weights, few enough that the gates
// of a chunk stay in L2, which is 1 MiB where there is AVX-512 and 512 KiB elsewhere: there half as
// many, if that helps (Zen 3, LSTM T100 B64 H128: 24.9 -> 24.2 ms). The reserve is laid out by
// chunks, so both passes have the same. Where few rows wait for W_hh to come from L2 and nothing is
// kept, 64 leave it more room there (Zen 5: B4 on two threads 0.469 -> 0.441 ms, B8 on one 1.20 ->
// 1.16).
inline int64_t stretch_of(const Problem& p, const Geometry& g) {
  const int64_t row = g.panels * g.row() * size_of(p.dtypes.computed);  // bytes
  const bool half =
      g.lanes * size_of(p.dtypes.computed) < 64 && 256 * row >= kL2 && 128 * row <= kL2;
  const int64_t rows = !p.training && p.B <= 8 ? 64 : half ? 128 : 256;
  return std::clamp<int64_t>(rows / std::max<int64_t>(p.B, 1), 1, std::max<int64_t>(p.T, 1));
}

// Few rows of few time steps do not pay for packing the weights (LSTM H=128, one step: 21 us
// packed, 10 not); many do (Zen 3, LSTM H512 T10 packed: B1 0.55 times as fast, B8 1.06, B64 1.29).
// Of one step no row's bits may depend on how many there are.
inline bool has_few_steps(const Problem& p) {
  return p.T == 1 || (p.T <= 4 && p.P >= 256) || (p.T <= 16 && p.P >= 512);
}
inline bool reads_in_place(const Problem& p) {
  return p.T == 1 || (has_few_steps(p) && p.rows().total() < 80);
}

// Few rows wait for W_hh to come from L2 or beyond, every step anew: it stays in bfloat16, in pairs
// of vectors, and is widened in registers. With more rows that costs more than it saves.
inline bool packs_pairs(const Problem& p) {
  return p.dtypes.stored == DType::kBFloat16 && !reads_in_place(p) && p.B <= 4;
}
constexpr int64_t paired(int vectors) { return (vectors + 1) / 2; }

// Going back, copies of wide weights and of their gradients pay for fewer (RNN T2 B1 H2048: 34 ms
// with them, 4 without; Zen 3, LSTM H1024, of 100 rows: 1.5 times as fast with them). So few rows
// are one chunk.
inline bool has_few_rows(const Problem& p) { return p.rows().total() <= 20; }
inline bool reads_in_place_back(const Problem& p) { return has_few_steps(p) && has_few_rows(p); }

// Columns of dW[G*H, columns] that are summed where torch wants them, with x or h as the vectors of
// the product. The others are summed with units of H as vectors and turned over at the end.
inline int64_t columns_in_place(const Problem& p, int64_t columns, int lanes) {
  const bool wide = columns >= 2 * kVectorsPerGroup * lanes;
  return wide && has_few_rows(p) ? columns / lanes * lanes : 0;
}

// Going through the rows of x or h a few columns at a time, every element is in another page or
// falls into the same few sets of L1, if rows are long: then the columns are gathered before (dW of
// 1,024 columns on a Zen 3: 61 -> 81 GFLOP/s; of 512 75 -> 82, of 256 85 -> 80).
constexpr int64_t kGatheredColumns = 96, kGatheredRows = 256;
inline bool gathers_columns(const Problem& p, int64_t ld) {
  return !has_few_rows(p) && ld * size_of(p.dtypes.computed) >= 2048;
}

// Hands out 64-byte aligned pieces of a buffer; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base, int64_t element) : base_(static_cast<char*>(base)), size_(element) {}
  template <class T>
  T* take(int64_t elements) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(std::max<int64_t>(elements, 0) * size_, 64);
    return reinterpret_cast<T*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t size_;
  int64_t used_ = 0;
};

// What forward keeps: activated gates (LSTM, GRU), c (LSTM), h before the projection.
template <class T>
struct Reserve {
  T *gates, *c, *hidden;
  int64_t width;  // elements a row

  Reserve(void* base, const Problem& p, const Geometry& g) {
    const int64_t gate_row = spec(p.cell).keeps_slots ? g.panels * g.row() : 0;
    const int64_t c_row = spec(p.cell).has_c ? g.width() : 0;
    const int64_t hidden_row = p.projected ? g.width() : 0;
    width = gate_row + c_row + hidden_row;
    const int64_t N = p.rows().total();
    gates = static_cast<T*>(base);
    c = gates + N * gate_row;
    hidden = c + N * c_row;
  }
};

template <class T>
struct ForwardBuffers {
  T *w_ih, *w_hh, *w_hr;  // packed: [panels][I][depth], [panels][P][depth], [columns of P][H];
                          // w_hh may hold pairs: [panels][P][paired vectors]
  T* bias;                // [panels][row]
  T* c;                   // [B][width]  running cell state
  T* hidden;              // [B][width]  h before the projection, when not kept
  T* gates;               // one chunk, when not kept

  int64_t used;

  ForwardBuffers(void* base, const Problem& p, const Geometry& g, int64_t stretch) {
    Arena arena(base, size_of(p.dtypes.computed));
    const bool has_c = spec(p.cell).has_c, keeps = p.training && spec(p.cell).keeps_slots;
    const int64_t packed = reads_in_place(p) ? 0 : g.panels * g.depth();
    w_ih = arena.take<T>(packed * p.I);
    w_hh =
        arena.take<T>(packs_pairs(p) ? g.panels * paired(g.vectors) * g.lanes * p.P : packed * p.P);
    w_hr = arena.take<T>(p.projected ? round_up(p.P, g.lanes) * p.H : 0);
    bias = arena.take<T>(g.panels * g.row());
    c = arena.take<T>(has_c ? p.B * g.width() : 0);
    hidden = arena.take<T>(p.projected && !p.training ? p.B * g.width() : 0);
    gates = arena.take<T>(keeps ? 0 : std::min(stretch, p.T) * p.B * g.panels * g.row());
    used = arena.used();
  }
};

// dx takes its weights a group of columns at a time. Where they are wide a thread packs what it
// needs for every two chunks anew, a block of k at a time: little room and no slower (LSTM T20 B128
// H1024: 321 ms packed once, 309 for every chunk). Narrow ones stay in L2, and rows from another
// thread cost more (T100 B64 H128: 31 and 37).
inline bool packs_inputs_by_chunk(const Problem& p, int lanes, int threads) {
  const int64_t bytes = gates_of(p.cell) * p.H * p.I * size_of(p.dtypes.computed);
  return !reads_in_place_back(p) && bytes > 2 << 20 &&
         p.I > kVectorsPerGroup * lanes * (threads - 1);
}

template <class T>
struct BackwardBuffers {
  T *w_ih, *w_hh, *w_hr;  // packed for products with gate gradients: [columns][panels*depth];
                          // read in place, the columns that fill no vector: [G*H][lanes]
  T* scratch;             // [threads][scratch_size]
  int64_t scratch_size;   // a block of w_ih, a vector's rows of dw, or gathered columns
  int chunks;             // whose gate gradients are kept at once
  T* dgates[3];           // a chunk each, in turn
  T *dh, *dc;             // [B][P padded], [B][width]  running gradients of the states
  T* c0;                  // [B][width]
  T* dh_projected[3];     // [rows of a chunk][P padded]  dh after the projection, projected only
  T* dh_hidden;           // [B][width]                   dh before it
  T *dw_ih, *dw_hh;       // [panels][columns][depth], of those that torch's dw has no room for
  T* dbias;               // [panels][row]
  int64_t used;

  BackwardBuffers(void* base, const Problem& p, const Geometry& g, const Plan& plan) {
    Arena arena(base, size_of(p.dtypes.computed));
    const bool has_c = spec(p.cell).has_c;
    const bool by_chunk = packs_inputs_by_chunk(p, g.lanes, plan.threads);
    const int64_t P = round_up(p.P, g.lanes), rows = std::min(plan.stretch, p.T) * p.B;
    const auto packed = [&](int64_t columns) {
      if (!reads_in_place_back(p)) return g.panels * g.depth() * round_up(columns, g.lanes);
      return columns % g.lanes ? gates_of(p.cell) * p.H * g.lanes : 0;
    };
    const auto sums = [&](int64_t columns) {
      const int64_t in_place = columns_in_place(p, columns, g.lanes);
      const int64_t panels = in_place ? g.panels : g.panels - g.whole_panels(p.H);
      return panels * (columns - in_place) * g.depth();
    };
    w_ih = arena.take<T>(by_chunk ? 0 : packed(p.I));
    w_hh = arena.take<T>(packed(p.P));
    w_hr = arena.take<T>(p.projected ? p.P * g.width() : 0);
    const int64_t group = std::min(round_up(p.I, g.lanes), int64_t(kVectorsPerGroup) * g.lanes);
    scratch_size =
        std::max(by_chunk ? group * panels_of_block(g, size_of(p.dtypes.computed)) * g.depth() : 0,
                 round_up(g.lanes * std::max(p.I, p.P), g.lanes));
    if (gathers_columns(p, std::max(p.I, 2 * p.P))) {  // y may be that of two directions
      scratch_size = std::max(scratch_size, kGatheredColumns * kGatheredRows);
    }
    scratch = arena.take<T>(plan.threads * scratch_size);
    chunks = by_chunk ? 2 : plan.threads > 1 ? 3 : 1;
    for (int i = 0; i < 3; ++i) {
      dgates[i] = arena.take<T>(i < chunks ? rows * g.panels * g.row() : 0);
      dh_projected[i] = arena.take<T>(i < chunks && p.projected ? rows * P : 0);
    }
    dh = arena.take<T>(p.B * P);
    dc = arena.take<T>(has_c ? p.B * g.width() : 0);
    c0 = arena.take<T>(has_c ? p.B * g.width() : 0);
    dh_hidden = arena.take<T>(p.projected ? p.B * g.width() : 0);
    dw_ih = arena.take<T>(sums(p.I));
    dw_hh = arena.take<T>(sums(p.P));
    dbias = arena.take<T>(g.panels * g.row());
    used = arena.used();
  }
};

}  // namespace
}  // namespace fusedrnn::cpu

// Where things lie: panels, the reserve, and the workspace of a direction. It follows from the
// problem, the plan and the number of lanes alone, so that the plan, the fake kernels and every
// variant agree.
//
// A panel is what one register tile makes: `unit_vectors` vectors of hidden units times the gates
// of the cell, padded to whole vectors. A step's rows of a panel hold `slots` vectors each.
// A chunk of `stretch` steps is laid out panel by panel, [panels][rows of the chunk][slots*lanes],
// so that a panel's rows are one contiguous run: what the products want.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cpu/narrow.h"
#include "cpu/params.h"
#include "cpu/tuning.h"

namespace fusedrnn::cpu {
namespace {  // compiled for several machines: see simd.h

// A product without gates makes its columns in groups of so many vectors, a tile's most.
constexpr int kVectorsPerGroup = 4;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t groups_of(int64_t columns, int lanes) {
  return (columns + kVectorsPerGroup * lanes - 1) / (kVectorsPerGroup * lanes);
}
constexpr int64_t paired(int vectors) { return (vectors + 1) / 2; }

struct Geometry {
  int lanes, unit_vectors, slots, vectors;  // slots and vectors of a whole panel
  int64_t panels;

  int64_t units() const { return int64_t(unit_vectors) * lanes; }
  int64_t width() const { return panels * units(); }  // H, padded
  int64_t row() const { return int64_t(slots) * lanes; }
  int64_t depth() const { return int64_t(vectors) * lanes; }
  int64_t whole_panels(int64_t H) const { return H / units(); }  // without padding

  Geometry(Cell cell, int64_t H, int lanes) : lanes(lanes) {
    const CellSpec& of = spec(cell);
    const bool wide = of.gates == 1 &&
                      round_up(H, 4 * lanes) * 4 <= round_up(H, lanes) * kMostQuartersOfWidePanels;
    unit_vectors = wide ? 4 : 1;
    slots = unit_vectors * of.slots;
    vectors = unit_vectors * of.gates;
    panels = (H + units() - 1) / units();
  }
};

constexpr int64_t block_of(int64_t vector_bytes) {
  return vector_bytes == 64 ? kBlockStepsAvx512 : kBlockSteps;
}
// Panels whose gates together are a block of k.
inline int64_t panels_of_block(const Geometry& g, int64_t element) {
  return std::max<int64_t>(block_of(g.lanes * element) / g.depth(), 1);
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

// Where the steps' states are kept, of which the gates are made again: after every `every` steps.
// Piece m begins with step m*every; of its first rows c of the step before lies from row(m) on.
struct Pieces {
  Rows rows;
  int64_t every;

  int64_t count() const { return (rows.T + every - 1) / every; }
  int64_t of(int64_t t) const { return t / every; }
  // Steps [begin, end) of piece m.
  int64_t begin(int64_t m) const { return m * every; }
  int64_t end(int64_t m) const { return std::min(rows.T, (m + 1) * every); }
  // The border that a direction crosses right after step t: the piece that comes later in time; 0
  // where there is none.
  int64_t border_after(int64_t t) const {
    const int64_t later = rows.reverse ? t : t + 1;
    return later % every == 0 && later < rows.T ? later / every : 0;
  }
  // The border that a direction crosses on its way into piece m; 0: it begins there.
  int64_t border_into(int64_t m) const { return !rows.reverse ? m : m + 1 < count() ? m + 1 : 0; }
  // Rows that cross a border, and where they are kept.
  int64_t crossing(int64_t border) const { return rows.active(begin(border)); }
  int64_t row(int64_t border) const {
    if (!rows.offsets) return (border - 1) * rows.B;
    int64_t sum = 0;
    for (int64_t m = 1; m < border; ++m) sum += crossing(m);
    return sum;
  }
};

// What forward keeps: activated gates (LSTM, GRU), c (LSTM), h before the projection; or c alone,
// at the borders of pieces.
template <class T>
struct Reserve {
  T *gates, *c, *hidden;
  int64_t width;  // elements a row

  Reserve(void* base, const Problem& p, const Geometry& g) {
    const Widths each(p, g);
    gates = static_cast<T*>(base);
    if (p.every > 0) {
      c = gates;
      hidden = nullptr;
      width = each.c;
      return;
    }
    const int64_t N = p.rows().total();
    width = each.gates + each.c + each.hidden;
    c = gates + N * each.gates;
    hidden = c + N * each.c;
  }

  // The same of piece m alone, and c of the step before it. Rows count over all steps as ever.
  Reserve(void* base, const Pieces& pieces, int64_t m, const Problem& p, const Geometry& g) {
    const Widths each(p, g);
    const Rows& rows = pieces.rows;
    const int64_t first = rows.offset(pieces.begin(m)), end = rows.offset(pieces.end(m));
    const int64_t first_c = rows.offset(std::max<int64_t>(pieces.begin(m) - 1, 0));
    const int64_t end_c = rows.offset(std::min(pieces.end(m) + 1, rows.T));
    width = each.gates + each.c + each.hidden;
    const int64_t c_from = (end - first) * each.gates,
                  hidden_from = c_from + (end_c - first_c) * each.c;
    size = hidden_from + (end - first) * each.hidden;
    gates = static_cast<T*>(base) - first * each.gates;
    c = static_cast<T*>(base) + c_from - first_c * each.c;
    hidden = static_cast<T*>(base) + hidden_from - first * each.hidden;
  }

  int64_t size = 0;  // elements of a piece's

 private:
  struct Widths {
    int64_t gates, c, hidden;
    Widths(const Problem& p, const Geometry& g)
        : gates(spec(p.cell).keeps_slots ? g.panels * g.row() : 0),
          c(spec(p.cell).has_c ? g.width() : 0),
          hidden(p.projected ? g.width() : 0) {}
  };
};

// The input product makes a cell's first G slots, the recurrent product its last G, which
// has_runs_of_slots in pack.h holds the table in model/cell.h to.
enum class Side { kInput, kRecurrent };

// Weights as the products of a forward pass read them.
template <class T>
struct PackedWeights {
  struct OfSide {
    T* panels;         // [panels][K][depth]; W_hh may hold pairs: [panels][K][paired vectors]
    uint32_t* words;   // narrow: [panels][words of K][depth]
    float* scales;     // int8: [panels][depth]
    int32_t* offsets;  // likewise: NarrowProduct::w_offset
  };
  OfSide input, recurrent;
  T* w_hr;  // [columns of P][H]
  T* bias;  // [panels][row]
  int64_t used;

  PackedWeights(void* base, const Problem& p, const Geometry& g, const Plan& plan) {
    Arena arena(base, size_of(p.dtypes.computed));
    const bool pairs = plan.weights == WeightsRead::kPackedInPairs;
    input = side(arena, p.I, g.panels * g.depth(), plan);
    recurrent =
        side(arena, p.P, g.panels * (pairs ? paired(g.vectors) * g.lanes : g.depth()), plan);
    w_hr = arena.take<T>(p.projected ? round_up(p.P, g.lanes) * p.H : 0);
    bias = arena.take<T>(g.panels * g.row());
    used = arena.used();
  }

  const OfSide& of(Side side) const { return side == Side::kInput ? input : recurrent; }

 private:
  static OfSide side(Arena& arena, int64_t K, int64_t columns, const Plan& plan) {
    const Narrow* const narrow = plan.narrow;
    const bool int8 = narrow && narrow->dtype == DType::kInt8;
    const int64_t packed = plan.weights == WeightsRead::kInPlace ? 0 : columns;
    return {.panels = arena.take<T>(narrow ? 0 : packed * K),
            .words = arena.take<uint32_t>(narrow ? packed * words_of(narrow->dtype, K) : 0),
            .scales = arena.take<float>(int8 ? packed : 0),
            .offsets = arena.take<int32_t>(int8 ? packed : 0)};
  }
};

// Rows of x or h as words. Threads that share rows have copies of their own.
struct WordRows {
  uint32_t* words;
  float* scales;  // int8: of each row
  int64_t row;    // words a row

  WordRows(Arena& arena, int64_t rows, int64_t n, const Narrow* narrow)
      : words(arena.take<uint32_t>(narrow ? rows * row_words(*narrow, n) : 0)),
        scales(arena.take<float>(narrow ? rows : 0)),
        row(narrow ? row_words(*narrow, n) : 0) {}
  WordRows from(int64_t first) const {
    WordRows rest = *this;
    rest.words += first * row;
    rest.scales += first;
    return rest;
  }
};

template <class T>
struct ForwardBuffers {
  Arena arena;
  PackedWeights<T> weights;
  WordRows x_words, h_words;  // narrow: [copies][rows of a chunk], [copies][B]
  T* c;                       // [B][width]  running cell state
  T* hidden;     // [B][width]  h before the projection, or h that is made again, when not kept
  T* gates;      // one chunk, when not kept
  T* h_cut;      // [B][P]  h that a step with cuts reads
  int64_t used;  // bytes of them all

  // `again`: for the pass that makes again what backward reads, of one piece at a time.
  ForwardBuffers(void* base, const Problem& p, const Geometry& g, const Plan& plan,
                 bool again = false)
      : arena(base, size_of(p.dtypes.computed)),
        weights(room_for_weights(base, p, g, plan), p, g, plan),
        x_words(arena, copies_of(plan) * rows_of_chunk(p, plan), p.I, plan.narrow),
        h_words(arena, copies_of(plan) * p.B, p.P, plan.narrow) {
    const bool has_c = spec(p.cell).has_c, keeps_all = p.keeps_all() || again,
               keeps_gates = keeps_all && spec(p.cell).keeps_slots;
    c = arena.take<T>(has_c ? p.B * g.width() : 0);
    hidden =
        arena.take<T>((p.projected && !keeps_all) || (again && !p.projected) ? p.B * g.width() : 0);
    gates = arena.take<T>(keeps_gates ? 0 : rows_of_chunk(p, plan) * g.panels * g.row());
    h_cut = arena.take<T>(p.cuts ? p.B * p.P : 0);
    used = arena.used();
  }

  static int64_t rows_of_chunk(const Problem& p, const Plan& plan) {
    return std::min(plan.stretch, p.T) * p.B;
  }

 private:
  static int64_t copies_of(const Plan& plan) {
    return plan.split == Split::kHidden ? plan.threads : 1;
  }
  // Frozen weights lie elsewhere.
  void* room_for_weights(void* base, const Problem& p, const Geometry& g, const Plan& plan) {
    const int64_t bytes = p.frozen ? 0 : PackedWeights<T>(nullptr, p, g, plan).used;
    void* const room = arena.take<T>(bytes / size_of(p.dtypes.computed));
    return base && !p.frozen ? room : nullptr;
  }
};

// Whether backward has anything to make again: an Elman cell's h tells it all.
inline bool makes_again(const Problem& p) { return p.keeps_some() && spec(p.cell).keeps_slots; }
// The plan by which backward makes gates again, from its own.
inline Plan forward_of(const Plan& backward) {
  Plan plan = backward;
  plan.weights = backward.again;
  plan.narrow = backward.narrow_again;
  return plan;
}

template <class T>
struct BackwardBuffers {
  T *w_ih, *w_hh, *w_hr;    // packed for products with gate gradients: [columns][panels*depth];
                            // read in place, the columns that fill no vector: [G*H][lanes]
  T* scratch;               // [threads][scratch_size]
  int64_t scratch_size;     // a block of w_ih, a vector's rows of dw, or gathered columns
  T* dgates[3];             // Plan::chunks of them in use, a chunk each, in turn
  uint32_t* gate_words[3];  // narrow: the same, [panels][rows][row/2]
  T *dh, *dc;               // [B][P padded], [B][width]  running gradients of the states
  T* c0;                    // [B][width]
  T* dh_projected[3];       // [rows of a chunk][P padded]  dh after the projection, projected only
  T* dh_hidden;             // [B][width]                   dh before it
  T *dw_ih, *dw_hh;         // [panels][columns][depth], of those that torch's dw has no room for
  T* dbias;                 // [panels][row]
  T* h_cut[3];              // [rows of a chunk][P]  h before the steps with cuts, a chunk each
  T* c_cut;                 // [B][width]            c before a step with cuts
  // Narrow: the rows of a chunk of x and of h before, [columns][words_of_rows], and where each row
  // of them begins, [threads][rows].
  uint32_t *x_words, *h_words;
  int64_t words_of_rows;
  void* row_starts;
  T* piece;  // what is made again of a piece, and the room for that
  void* again;
  int64_t used;  // bytes of them all

  BackwardBuffers(void* base, const Problem& p, const Geometry& g, const Plan& plan) {
    Arena arena(base, size_of(p.dtypes.computed));
    const bool has_c = spec(p.cell).has_c;
    const int64_t P = round_up(p.P, g.lanes), rows = std::min(plan.stretch, p.T) * p.B;
    const bool narrow = plan.narrow;
    const auto packed = [&](int64_t columns) {
      if (plan.weights != WeightsRead::kInPlace) {
        return g.panels * g.depth() / (narrow ? 2 : 1) * round_up(columns, g.lanes);
      }
      return columns % g.lanes ? gates_of(p.cell) * p.H * g.lanes : 0;
    };
    const auto sums = [&](int64_t columns, int64_t in_place) {
      const int64_t panels = in_place ? g.panels : g.panels - g.whole_panels(p.H);
      return panels * (columns - in_place) * g.depth();
    };
    w_ih = arena.take<T>(plan.packs_inputs_by_chunk ? 0 : packed(p.I));
    w_hh = arena.take<T>(packed(p.P));
    w_hr = arena.take<T>(p.projected ? p.P * g.width() : 0);
    scratch_size = scratch_of(p, g, plan);
    scratch = arena.take<T>(plan.threads * scratch_size);
    for (int i = 0; i < 3; ++i) {
      dgates[i] = arena.take<T>(i < plan.chunks ? rows * g.panels * g.row() : 0);
      const bool words = narrow && i < plan.chunks;
      gate_words[i] = arena.take<uint32_t>(words ? rows * g.panels * g.row() / 2 : 0);
      dh_projected[i] = arena.take<T>(i < plan.chunks && p.projected ? rows * P : 0);
    }
    dh = arena.take<T>(p.B * P);
    dc = arena.take<T>(has_c ? p.B * g.width() : 0);
    c0 = arena.take<T>(has_c ? p.B * g.width() : 0);
    dh_hidden = arena.take<T>(p.projected ? p.B * g.width() : 0);
    dw_ih = arena.take<T>(sums(p.I, plan.input_columns_in_place));
    dw_hh = arena.take<T>(sums(p.P, plan.state_columns_in_place));
    dbias = arena.take<T>(g.panels * g.row());
    for (int i = 0; i < 3; ++i) {
      h_cut[i] = arena.take<T>(i < plan.chunks && p.cuts ? rows * p.P : 0);
    }
    c_cut = arena.take<T>(has_c && p.cuts ? p.B * g.width() : 0);
    words_of_rows = (rows + 1) / 2;
    x_words = arena.take<uint32_t>(narrow ? p.I * words_of_rows : 0);
    h_words = arena.take<uint32_t>(narrow ? p.P * words_of_rows : 0);
    row_starts = arena.take<T>(narrow ? plan.threads * rows * 2 : 0);
    piece = arena.take<T>(makes_again(p) ? most_of_pieces(p, g, plan) : 0);
    again = arena.take<T>(makes_again(p)
                              ? ForwardBuffers<T>(nullptr, p, g, forward_of(plan), true).used /
                                    size_of(p.dtypes.computed)
                              : 0);
    used = arena.used();
  }

 private:
  static int64_t most_of_pieces(const Problem& p, const Geometry& g, const Plan& plan) {
    const Pieces pieces{p.rows(), plan.every};
    int64_t most = 0;
    for (int64_t m = 0; m < pieces.count(); ++m) {
      most = std::max(most, Reserve<T>(nullptr, pieces, m, p, g).size);
    }
    return most;
  }
  static int64_t scratch_of(const Problem& p, const Geometry& g, const Plan& plan) {
    const int64_t group = std::min(round_up(p.I, g.lanes), int64_t(kVectorsPerGroup) * g.lanes);
    const int64_t block = group * panels_of_block(g, size_of(p.dtypes.computed)) * g.depth();
    const int64_t turned = round_up(g.lanes * std::max(p.I, p.P), g.lanes);
    // y may be that of two directions.
    const bool gathers = std::max(p.I, 2 * p.P) >= plan.gathers_from;
    const int64_t rows = std::min(plan.stretch, p.T) * p.B;
    const int64_t gathered = plan.narrow ? (rows + 1) / 2 * g.depth()
                             : gathers   ? kGatheredColumns * kGatheredRows
                                         : 0;
    return std::max(std::max(plan.packs_inputs_by_chunk ? block : 0, turned), gathered);
  }
};

}  // namespace
}  // namespace fusedrnn::cpu

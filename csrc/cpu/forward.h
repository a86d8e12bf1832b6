// The fused forward layer. A thread owns rows of the batch for the whole sequence or, with few rows
// or wide weights, panels of hidden units. For a chunk of steps it makes the input products of its
// part at once. Then, step by step and panel by panel, it adds the recurrent product and applies
// the cell to gates that are still in L1. Threads that own rows never wait for each other.
#pragma once

#include "cpu/panel_products.h"
#include "cpu/states.h"
#include "cpu/team.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

template <class T, class C, int kUnitVectors, class S>
class Forward {
 public:
  Forward(const ForwardParams& params, const Plan& plan)
      : a_(params),
        p_(params.problem),
        plan_(plan),
        g_(p_.cell, p_.H, kLanes<T>),
        buf_(params.workspace, p_, g_, plan),
        weights_(weights()),
        products_(a_, plan_, g_, weights_),
        keep_(params.reserve, p_, g_),
        pieces_{p_.rows(), plan.every},
        keeps_(p_.keeps_all()) {}

  // For backward: what it reads is made again of the y that forward left, piece by piece.
  struct Again {};
  Forward(const ForwardParams& params, const Plan& plan, Again)
      : a_(params),
        p_(params.problem),
        plan_(plan),
        g_(p_.cell, p_.H, kLanes<T>),
        buf_(params.workspace, p_, g_, plan, true),
        weights_(weights()),
        products_(a_, plan_, g_, weights_),
        keep_(params.reserve, p_, g_),
        kept_c_(keep_.c),
        pieces_{p_.rows(), plan.every},
        keeps_(true),
        again_(true) {}

  void operator()(int id, int n) {
    prepare(id, n);
    barrier_.wait(n);
    const Own own = own_of(id, n);
    walk({0, p_.T}, own);
    final_states(by_rows() ? own.rows : share(p_.B, id, n));
  }

  // Makes piece m of what backward reads, in `keep`, for it alone. All threads call it, between
  // barriers of their own; before the first piece comes prepare().
  void again(const Reserve<T>& keep, int64_t m, int id, int n) {
    const Own own = own_of(id, n);
    if (C::kHasC) take_up(keep, m, own);
    walk({pieces_.begin(m), pieces_.end(m)}, own);
  }
  void prepare(int id, int n) {
    if (!p_.frozen) pack_weights<T, S, S>(a_, plan_, g_, weights_, id, n);
    if (C::kHasC) {
      pad_rows(static_cast<const T*>(a_.c0), p_.H, buf_.c, g_.width(), share(p_.B, id, n));
    }
  }
  // Where the next piece goes. One thread calls it.
  void keep(const Reserve<T>& piece) { keep_ = piece; }

 private:
  static constexpr int W = kLanes<T>;
  static constexpr int kSlots = C::kSlots * kUnitVectors, kVectors = C::kGates * kUnitVectors;
  static constexpr int64_t kRow = kSlots * W, kDepth = kVectors * W;
  static constexpr int64_t kRecurrent = (kSlots - kVectors) * W;  // offset of the recurrent slots

  T* y() const { return static_cast<T*>(a_.y); }
  PackedWeights<T> weights() const {
    if (!p_.frozen) return buf_.weights;
    return PackedWeights<T>(const_cast<void*>(a_.packed), p_, g_, plan_);  // only read
  }
  bool narrow() const { return sizeof(T) == 4 && plan_.narrow; }
  bool keeps_gates() const { return C::kKeepsSlots && keeps_; }
  bool by_rows() const { return plan_.split != Split::kHidden; }
  // h goes somewhere else than to y: before the projection, or because y has it.
  bool is_apart() const { return p_.projected || again_; }
  int64_t out_stride() const { return is_apart() ? g_.width() : a_.ldy; }

  Range units_of(Range panels) const {
    return {panels.begin * g_.units(), panels.end * g_.units()};
  }

  // What a thread owns for the whole sequence, and who shares its rows.
  struct Own {
    Range rows, panels;
    int id, n;
  };
  Own own_of(int id, int n) const {
    if (by_rows()) return {share_rows(p_, id, n), {0, g_.panels}, 0, 1};
    return {{0, p_.B}, share(g_.panels, id, n), id, n};
  }

  // Chunk by chunk through whole chunks of steps.
  void walk(Range all, const Own& own) {
    const int64_t stretch = plan_.stretch, chunks = (all.size() + stretch - 1) / stretch;
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = all.begin + (p_.reverse ? chunks - 1 - i : i) * stretch;
      const Range steps{first, std::min(all.end, first + stretch)};
      const GateChunk<T> gates = chunk_at(steps, own.rows);
      project_inputs(steps, own, gates);
      for (int64_t s = 0; s < steps.size(); ++s) {
        const int64_t t = p_.reverse ? steps.end - 1 - s : steps.begin + s;
        step(t, own, gates, chunk_row(steps, t, own.rows));
        if (again_) {  // h is there, so nobody waits for more than the room of cuts
          if (p_.cuts) barrier_.wait(own.n);
          continue;
        }
        if (C::kHasC && p_.keeps_some()) keep_state(t, own);
        if (p_.projected) {
          barrier_.wait(own.n);
          project_hidden(t, own.rows, own.id, own.n);
        }
        barrier_.wait(own.n);
      }
    }
  }

  // c of the rows that cross a border after step t.
  void keep_state(int64_t t, const Own& own) {
    const int64_t border = pieces_.border_after(t);
    if (border == 0) return;
    copy_states(own, pieces_.crossing(border), buf_.c, keep_.c + pieces_.row(border) * g_.width());
  }
  // Begins piece m: with c as forward kept it, for who reads on and for who reads it as c before
  // the first step, and with c0 where a sequence begins.
  void take_up(const Reserve<T>& keep, int64_t m, const Own& own) {
    const int64_t border = pieces_.border_into(m), width = g_.width();
    const int64_t crossing = border ? pieces_.crossing(border) : 0;
    const T* c0 = static_cast<const T*>(a_.c0);
    const Range units = units_of(own.panels);
    for (int64_t r = own.rows.begin; r < own.rows.end; ++r) {
      for (int64_t unit = units.begin; unit < units.end; ++unit) {
        buf_.c[r * width + unit] = c0 && unit < p_.H ? c0[r * p_.H + unit] : T(0);
      }
    }
    if (border == 0) return;
    const T* kept = kept_c_ + pieces_.row(border) * width;
    copy_states(own, crossing, kept, buf_.c);
    const int64_t before = pieces_.begin(border) - (p_.reverse ? 0 : 1);
    copy_states(own, crossing, kept, keep.c + p_.rows().offset(before) * width);
  }
  // A thread's own part of rows [0, count) of c.
  void copy_states(const Own& own, int64_t count, const T* from, T* to) const {
    const Range units = units_of(own.panels);
    for (int64_t r = own.rows.begin; r < std::min(own.rows.end, count); ++r) {
      const int64_t row = r * g_.width();
      std::copy(from + row + units.begin, from + row + units.end, to + row + units.begin);
    }
  }

  // Gates that are kept have room for every row; otherwise each slice of rows has its own part of
  // one chunk.
  GateChunk<T> chunk_at(Range steps, Range rows) const {
    if (keeps_gates()) {
      const int64_t from = p_.rows().offset(steps.begin);
      return {keep_.gates + from * g_.panels * kRow, (p_.rows().offset(steps.end) - from) * kRow};
    }
    const int64_t room = std::min(plan_.stretch, p_.T);
    return {buf_.gates + room * rows.begin * g_.panels * kRow, room * rows.size() * kRow};
  }
  // The row of the chunk from which on the slice's rows of step t lie.
  int64_t chunk_row(Range steps, int64_t t, Range rows) const {
    if (keeps_gates()) return p_.rows().offset(t) - p_.rows().offset(steps.begin) + rows.begin;
    return (t - steps.begin) * rows.size();
  }

  void project_inputs(Range steps, const Own& own, const GateChunk<T>& gates) {
    const Range rows = own.rows, panels = own.panels;
    const bool whole = is_whole(rows);
    const WordRows words = x_words(own);
    if (narrow()) narrow_inputs(steps, rows, words);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      for (int64_t t = steps.begin; t < steps.end; t = whole ? steps.end : t + 1) {
        const int64_t n = whole ? p_.rows().offset(steps.end) - p_.rows().offset(t)
                                : p_.rows().active(t, rows.begin, rows.end);
        if (n == 0) continue;
        T* out = gates.at(panel, chunk_row(steps, t, rows), kRow);
        const T* bias = weights_.bias + panel * kRow;
        const T* x = static_cast<const T*>(a_.x) + (p_.rows().offset(t) + rows.begin) * p_.I;
        products_.multiply(Side::kInput, {.panels = {panel, panel + 1},
                                          .back = false,
                                          .stride = 0,
                                          .a = x,
                                          .a_row = p_.I,
                                          .words = words.from(word_row(steps, t, rows)),
                                          .init = bias,
                                          .init_row = 0,
                                          .c = out,
                                          .rows = n,
                                          .far = panel == panels.begin});
        if constexpr (kRecurrent > 0) {
          for (int64_t r = 0; r < n; ++r) {
            std::copy(bias + kDepth, bias + kRow, out + r * kRow + kDepth);
          }
        }
      }
    }
  }

  // Whether the slice's rows of several steps lie side by side.
  bool is_whole(Range rows) const { return rows.size() == p_.B && (keeps_gates() || !p_.packed); }
  // Rows of a chunk as words, those of the slice from word_row() on; and of h, from row 0 on. Who
  // shares rows has all of them for itself; who does not may be in another chunk than the others,
  // where its rows of packed steps would lie elsewhere: so each slice has room of its own.
  WordRows x_words(const Own& own) const {
    const int64_t chunk = ForwardBuffers<T>::rows_of_chunk(p_, plan_);
    return buf_.x_words.from(own.id * chunk + std::min(plan_.stretch, p_.T) * own.rows.begin);
  }
  int64_t word_row(Range steps, int64_t t, Range rows) const {
    if (is_whole(rows)) return p_.rows().offset(t) - p_.rows().offset(steps.begin);
    return (t - steps.begin) * rows.size();
  }
  WordRows h_words(const Own& own) const { return buf_.h_words.from(own.id * p_.B); }
  void narrow_inputs(Range steps, Range rows, const WordRows& words) {
    const T* x = static_cast<const T*>(a_.x);
    for (int64_t t = steps.begin; t < steps.end; ++t) {
      const int64_t first = p_.rows().offset(t) + rows.begin;
      const States<T> rows_of_x{x + first * p_.I, p_.I};
      narrow_rows(*plan_.narrow, rows_of_x, p_.rows().active(t, rows.begin, rows.end), p_.I,
                  words.from(word_row(steps, t, rows)));
    }
  }

  // One step: panel by panel, so that the cell finds its gates in L1, but of few rows several
  // panels together (kGateBytesTogether).
  void step(int64_t t, const Own& own, const GateChunk<T>& gates, int64_t chunk_row) {
    const Range slice = own.rows, panels = own.panels;
    Segments<T> segments(p_, t, slice, a_.y, a_.ldy, a_.h0);
    if (has_cuts(p_, t)) cut(t, own, segments);
    const WordRows words = h_words(own);
    for (int i = 0; narrow() && i < segments.count; ++i) {
      const Segment<T>& s = segments.item[i];
      if (!s.h_prev) continue;
      narrow_rows(*plan_.narrow, States<T>{s.h_prev, s.stride}, s.rows.size(), p_.P,
                  words.from(s.rows.begin));
    }
    const int64_t rows = std::max<int64_t>(slice.size(), 1);
    const int64_t together =
        std::max<int64_t>(kGateBytesTogether / (rows * kRow * int64_t(sizeof(T))), 1);
    for (int64_t from = panels.begin; from < panels.end; from += together) {
      const int64_t last = std::min(from + together, panels.end) - 1;
      const auto [first, final] =
          std::minmax({to_and_fro(panels, from, t), to_and_fro(panels, last, t)});
      const Range some{first, final + 1};
      for (int i = 0; i < segments.count; ++i) {
        const Segment<T>& s = segments.item[i];
        T* const out = gates.at(first, chunk_row + s.rows.begin - slice.begin, kRow);
        if (s.h_prev) {
          products_.multiply(Side::kRecurrent, {.panels = some,
                                                .back = t % 2 != 0,
                                                .stride = gates.panel_stride,
                                                .a = s.h_prev,
                                                .a_row = s.stride,
                                                .words = words.from(s.rows.begin),
                                                .init = out + kRecurrent,
                                                .init_row = kRow,
                                                .c = out + kRecurrent,
                                                .rows = s.rows.size()});
        }
        cells(t, some, s, {out, gates.panel_stride});
      }
    }
  }

  // Makes the cuts before step t: in c where it is, in a copy of h.
  void cut(int64_t t, const Own& own, Segments<T>& segments) {
    const int64_t active = p_.rows().active(t, own.rows.begin, own.rows.end);
    const Range part = share(active, own.id, own.n);
    cut_h(a_, t, segments, {own.rows.begin + part.begin, own.rows.begin + part.end}, buf_.h_cut);
    for (int64_t r = own.rows.begin; C::kHasC && r < own.rows.begin + active; ++r) {
      if (is_cut(p_, t, r)) reset_c_to(a_, r, units_of(own.panels), buf_.c + r * g_.width());
    }
    barrier_.wait(own.n);
    segments.read(buf_.h_cut, p_.P);
  }

  // Vectors that go through the cell one after the other: a vector of units of several rows, or of
  // several panels of one row.
  struct Strides {
    int64_t slots, h, c, c_out, out;
  };
  struct Vectors {
    int64_t unit, count;  // the first one's units
    T* slots;
    Strides by;
  };

  // The cell over some panels of one segment, on gates just made.
  void cells(int64_t t, Range panels, const Segment<T>& s, GateChunk<T> gates) {
    const int64_t units = g_.units();
    const bool one_row = s.rows.size() == 1;
    const int64_t at_once = one_row ? panels.size() : 1;
    const Strides by = one_row ? Strides{gates.panel_stride, units, units, units, units}
                               : Strides{kRow, s.stride, g_.width(), a_.ldc, out_stride()};
    for (int64_t panel = panels.begin; panel < panels.end; panel += at_once) {
      for (int u = 0; u < kUnitVectors; ++u) {
        const int64_t unit = panel * units + u * W;
        if (unit >= p_.H) break;
        T* const slots = gates.at(panel - panels.begin, 0, kRow) + u * C::kSlots * W;
        // Of one row those vectors that are whole, and the one where H ends.
        const int64_t whole = std::min((p_.H - unit - W + units) / units, at_once);
        const int64_t count = one_row ? whole : s.rows.size();
        in_parts(t, s, {unit, count, slots, by});
        if (one_row && whole < at_once && unit + whole * units < p_.H) {
          in_parts(t, s, {unit + whole * units, 1, slots + whole * by.slots, by});
        }
      }
    }
  }
  // A vector is one long chain of instructions. Without AVX-512 the machine does not look far
  // enough ahead to begin the next one meanwhile: there two shorter chains, one after the other,
  // are faster (Zen 3: 93 and 75 cycles a vector of an LSTM).
  void in_parts(int64_t t, const Segment<T>& s, const Vectors& v) {
    if constexpr (kInParts) {
      if (v.count > 1) {
        cell<true, false>(t, s, v);
        cell<false, true>(t, s, v);
        return;
      }
    }
    cell<true, true>(t, s, v);
  }

  static constexpr bool kInParts = C::kBegun && W * sizeof(T) < 64;

  template <bool kBegins, bool kFinishes>
  void cell(int64_t t, const Segment<T>& s, const Vectors& vectors) {
    using V = Vec<T>;
    // All that they share is read before the first store: as far as the compiler knows, a store may
    // be to `this`, and it would read everything again after each.
    const Vectors v = vectors;
    const int lanes = int(std::min<int64_t>(p_.H - v.unit, W));
    const bool training = keeps_;
    const int64_t width = g_.width(), first = p_.rows().offset(t) + s.rows.begin;
    const T* h_before = s.h_prev ? s.h_prev + v.unit : nullptr;
    T* c_state = buf_.c + s.rows.begin * width + v.unit;
    T* c_kept = keep_.c + first * width + v.unit;
    T* out = (is_apart() ? hidden(t, s.rows.begin) : y() + first * a_.ldy) + v.unit;
    const int out_lanes = is_apart() ? W : lanes;
    T* c_out = C::kHasC && a_.c ? static_cast<T*>(a_.c) + first * a_.ldc + v.unit : nullptr;
    T* slot = v.slots;
    for (int64_t r = 0; r < v.count; ++r, slot += v.by.slots) {
      V x[C::kSlots];
#pragma GCC unroll 4
      for (int i = 0; i < C::kSlots; ++i) x[i] = V::load(slot + i * W);
      V c{}, h_prev{}, h{};
      if constexpr (C::kHasC) c = V::load(c_state + r * v.by.c);
      if constexpr (C::kUsesPreviousH && kFinishes) {
        h_prev = h_before ? V::load(h_before + r * v.by.h, lanes) : V(T(0));
      }
      if constexpr (kBegins && kFinishes) {
        h = C::forward(x, h_prev, c);
      } else if constexpr (kBegins) {
        C::begin(x, c);
      } else {
        h = C::finish(x, h_prev, c);
      }
      if constexpr (C::kHasC && kBegins) {
        c.store(c_state + r * v.by.c);
        if (training) c.store(c_kept + r * v.by.c);
        if (c_out) c.store(c_out + r * v.by.c_out, lanes);
      }
      if constexpr (C::kKeepsSlots) {
#pragma GCC unroll 4
        for (int i = 0; i < C::kSlots; ++i) {
          const bool begun = kBegins && (C::kBegun >> i & 1),
                     finished = kFinishes && (C::kFinished >> i & 1);
          const bool handed_on = !kFinishes && (C::kHandedOn >> i & 1);
          if (handed_on || (training && (begun || finished))) x[i].store(slot + i * W);
        }
      }
      if constexpr (kFinishes) h.store(out + r * v.by.out, out_lanes);
    }
  }

  // h of step t before the projection.
  T* hidden(int64_t t, int64_t row) const {
    return p_.projected && keeps_ ? keep_.hidden + (p_.rows().offset(t) + row) * g_.width()
                                  : buf_.hidden + row * g_.width();
  }

  // y = hidden W_hr'. The threads that share the rows share out the columns, in groups.
  void project_hidden(int64_t t, Range rows, int id, int n) {
    const int64_t active = p_.rows().active(t, rows.begin, rows.end);
    if (active == 0) return;
    const Range groups = share(groups_of(p_.P, W), id, n);
    for (int64_t i = groups.begin; i < groups.end; ++i) {
      const Group group = group_of(p_.P, W, i);
      product<T>(group.vectors,
                 {.a = hidden(t, rows.begin),
                  .a_row = g_.width(),
                  .depth = p_.H,
                  .w = weights_.w_hr + group.column * p_.H,
                  .w_k = int64_t(group.vectors) * W,
                  .c = y() + (p_.rows().offset(t) + rows.begin) * a_.ldy + group.column,
                  .c_row = a_.ldy,
                  .rows = active,
                  .tail = group.tail});
    }
  }

  void final_states(Range rows) {
    for (int64_t r = rows.begin, t = p_.T - 1; r < rows.end; ++r) {
      t = p_.rows().last_step(r, t);
      const T* last = y() + p_.rows().final_row(r, t) * a_.ldy;
      std::copy(last, last + p_.P, static_cast<T*>(a_.h_n) + r * p_.P);
    }
    if (C::kHasC) unpad_rows(buf_.c, g_.width(), static_cast<T*>(a_.c_n), p_.H, rows);
  }

  const ForwardParams& a_;
  const Problem& p_;
  const Plan& plan_;
  const Geometry g_;
  const ForwardBuffers<T> buf_;
  const PackedWeights<T> weights_;
  const PanelProducts<T, kVectors, kSlots, S> products_;
  Reserve<T> keep_;
  const T* const kept_c_ = nullptr;  // of the steps before borders
  const Pieces pieces_;
  const bool keeps_;  // all that backward reads
  const bool again_ = false;
  Barrier barrier_;
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

// The fused backward layer, chunk by chunk against the order of forward. Each step makes the
// gradients of its gates from the gates that were kept, then dh of the step before by one product.
// When a chunk is done its gate gradients are still in cache: dx is made from them at once, and the
// weight gradients by all threads together, once all have done the chunk. A thread that owns rows
// does its steps of the next chunk before that, so that none waits long for the others. Sums run
// over chunks in one order, whatever the number of threads, so that bits do not depend on it.
#pragma once

#include "cpu/again.h"
#include "cpu/denormals.h"
#include "cpu/forward.h"
#include "cpu/gate_products.h"
#include "cpu/weight_gradients.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

template <class T, class C, int kUnitVectors>
class Backward {
 public:
  Backward(const BackwardParams& params, const Plan& plan)
      : a_(params),
        p_(params.problem),
        plan_(plan),
        g_(p_.cell, p_.H, kLanes<T>),
        buf_(params.workspace, p_, g_, plan),
        keep_(const_cast<void*>(params.reserve), p_, g_),
        products_(params, plan, g_, buf_),
        weights_(params, plan, g_, buf_, keep_),
        again_(params, plan, g_, buf_.again, buf_.piece) {}

  void operator()(int id, int n) {
    again_.prepare(id, n);
    [[maybe_unused]] const FlushDenormals flushed;
    prepare(id, n);
    barrier_.wait(n);
    const bool by_rows = plan_.split != Split::kHidden;
    const Range rows = by_rows ? share_rows(p_, id, n) : Range{0, p_.B};
    const Range panels = by_rows ? Range{0, g_.panels} : share(g_.panels, id, n);
    for (int64_t i = 0, end; i < chunks(); i = end) {
      end = piece_end(i);
      if (again_.wanted()) again_.make(chunk(i).steps.begin / plan_.every, id, n, barrier_, keep_);
      run_chunks(i, end, rows, panels, id, n);
    }
    barrier_.wait(n);
    weights_.finish(id, n);
    const Range mine = by_rows ? rows : share(p_.B, id, n);
    if (a_.dh0) unpad_rows(buf_.dh, dh_width(), static_cast<T*>(a_.dh0), p_.P, mine);
    if (C::kHasC && a_.dc0) {
      unpad_rows(buf_.dc, g_.width(), static_cast<T*>(a_.dc0), p_.H, mine);
    }
  }

 private:
  using V = Vec<T>;
  static constexpr int W = kLanes<T>;
  static constexpr int kSlots = C::kSlots * kUnitVectors, kVectors = C::kGates * kUnitVectors;
  static constexpr int64_t kRow = kSlots * W, kDepth = kVectors * W;
  static constexpr int64_t kRecurrent = (kSlots - kVectors) * W;

  int64_t chunks() const { return (p_.T + plan_.stretch - 1) / plan_.stretch; }
  // The chunk, counted in the order of this pass, that follows the piece which chunk i begins.
  int64_t piece_end(int64_t i) const {
    const int64_t all = chunks();
    if (!again_.wanted()) return all;
    const int64_t each = plan_.every / plan_.stretch;
    const int64_t left = p_.reverse ? each : (all - i) % each ? (all - i) % each : each;
    return std::min(all, i + left);
  }

  // Chunks [begin, end) in the order of this pass.
  void run_chunks(int64_t begin, int64_t end, Range rows, Range panels, int id, int n) {
    const bool by_rows = plan_.split != Split::kHidden;
    const int among = by_rows ? 1 : n, me = by_rows ? 0 : id;
    const bool wide = a_.dx && plan_.packs_inputs_by_chunk;
    const int behind = n > 1 && by_rows && !plan_.packs_inputs_by_chunk ? 1 : 0;
    unsigned arrival = 0;
    for (int64_t i = begin; i < end + behind; ++i) {
      if (i < end) {
        steps(i, i == chunks() - 1, rows, panels, me, among);
        if (a_.dx && !wide) inputs(chunk(i), rows, me, among);
      }
      if (!behind) arrival = barrier_.arrive(n);
      if (i >= begin + behind) {
        barrier_.wait_for(arrival, n);
        if (wide && (i % 2 || i == chunks() - 1)) wide_inputs(i - i % 2, i, id, n);
        const int64_t complete = i - behind;
        const Chunk all = chunk(complete);
        if (narrow()) {
          weights_.narrow_rows(all.steps, complete, id, n);
          barrier_.wait(n);
        }
        rounds_.run(complete, id, n, [&](Part part) {
          weights_.add(all.steps, complete, all.grads.base, part, id);
        });
        if (wide && i % 2) barrier_.wait(n);  // the next chunk takes the place of the one before
      }
      if (behind && i < end) arrival = barrier_.arrive(n);
    }
  }

  // The i-th chunk in the order of this pass: rows [first, first + size) of x.
  struct Chunk {
    Range steps;
    int64_t first, size;
    GateChunk<T> grads;
    GateChunk<uint32_t> words;  // those in bfloat16, two to a word, where products are of that
  };
  Chunk chunk(int64_t i) const {
    const int64_t stretch = plan_.stretch, last = (p_.T - 1) / stretch;
    const int64_t begin = (p_.reverse ? i : last - i) * stretch;
    const Range steps{begin, std::min(p_.T, begin + stretch)};
    const int64_t first = p_.rows().offset(steps.begin), size = p_.rows().offset(steps.end) - first;
    const int64_t of = i % plan_.chunks;
    return {
        steps, first, size, {buf_.dgates[of], size * kRow}, {buf_.gate_words[of], size * kRow / 2}};
  }

  const T* y() const { return static_cast<const T*>(a_.y); }
  bool narrow() const { return sizeof(T) == 4 && plan_.narrow; }
  int64_t dh_width() const { return round_up(p_.P, W); }

  void prepare(int id, int n) {
    if (a_.dx && !plan_.packs_inputs_by_chunk) products_.pack(Side::kInput, id, n);
    if (p_.T > 1 || a_.dh0 || a_.dreset_h) products_.pack(Side::kRecurrent, id, n);
    if (p_.projected) {
      const Range groups = share(groups_of(p_.H, W), id, n);
      for (int64_t i = groups.begin; i < groups.end; ++i) {
        const Group group = group_of(p_.H, W, i);
        pack_columns(static_cast<const T*>(a_.w_hr), p_.H, group, {0, p_.P},
                     buf_.w_hr + group.column * p_.P);
      }
    }
    weights_.clear(id, n);
    const Range rows = share(p_.B, id, n);
    pad_rows(static_cast<const T*>(a_.dh_n), p_.P, buf_.dh, dh_width(), rows);
    if (C::kHasC) {
      pad_rows(static_cast<const T*>(a_.dc_n), p_.H, buf_.dc, g_.width(), rows);
      pad_rows(static_cast<const T*>(a_.c0), p_.H, buf_.c0, g_.width(), rows);
    }
  }

  // dh + dy of the projected h, kept for dW_hr; then from it dh before the projection.
  void project_back(int64_t t, Range rows, int64_t chunk_row, T* kept, int id, int n) {
    const int64_t width = dh_width();
    const T* dy = static_cast<const T*>(a_.dy);
    const Range part = share(rows.size(), id, n);
    for (int64_t r = rows.begin + part.begin; r < rows.begin + part.end; ++r) {
      const T* dh = buf_.dh + r * width;
      T* out = kept + (chunk_row + r) * width;
      for (int64_t i = 0; i < width; i += W) {
        V sum = V::load(dh + i);
        if (dy) {
          sum = sum + V::load(dy + (p_.rows().offset(t) + r) * a_.lddy + i,
                              int(std::min<int64_t>(p_.P - i, W)));
        }
        sum.store(out + i);
      }
    }
    barrier_.wait(n);
    const Range groups = share(groups_of(p_.H, W), id, n);
    for (int64_t i = groups.begin; i < groups.end; ++i) {
      const Group group = group_of(p_.H, W, i);
      product<T>(group.vectors, {.a = kept + (chunk_row + rows.begin) * width,
                                 .a_row = width,
                                 .depth = p_.P,
                                 .w = buf_.w_hr + group.column * p_.P,
                                 .w_k = int64_t(group.vectors) * W,
                                 .c = buf_.dh_hidden + rows.begin * g_.width() + group.column,
                                 .c_row = g_.width(),
                                 .rows = rows.size()});
    }
  }

  void steps(int64_t i, bool last, Range rows, Range panels, int me, int among) {
    const Chunk all = chunk(i);
    const GateChunk<T> gates{keep_.gates + all.first * g_.panels * kRow, all.size * kRow};
    for (int64_t s = 0; s < all.steps.size(); ++s) {
      const int64_t t = p_.reverse ? all.steps.begin + s : all.steps.end - 1 - s;
      const int64_t row = p_.rows().offset(t) - all.first;
      const Range active{rows.begin, rows.begin + p_.rows().active(t, rows.begin, rows.end)};
      if (p_.projected) {
        project_back(t, active, row, buf_.dh_projected[i % plan_.chunks], me, among);
        barrier_.wait(among);
      }
      const bool cuts = has_cuts(p_, t);
      T* h_cut = cuts ? buf_.h_cut[i % plan_.chunks] + row * p_.P : nullptr;
      if (cuts) {
        const Segments<T> segments(p_, t, active, a_.y, a_.ldy, a_.h0);
        const Range part = share(active.size(), me, among);
        cut_h(a_, t, segments, {active.begin + part.begin, active.begin + part.end}, h_cut);
        barrier_.wait(among);
      }
      cells(t, active, panels, gates, all, row, h_cut);
      barrier_.wait(among);
      // Before the last of these steps there is only h0, whose gradient may not be wanted.
      if (!last || s < all.steps.size() - 1 || a_.dh0 || a_.dreset_h) {
        previous_h(t, active, all, row, me, among);
      }
      barrier_.wait(among);
      if (cuts) {
        const Range part = share(active.size(), me, among);
        const Range mine{active.begin + part.begin, active.begin + part.end};
        hand_over(p_, t, mine, {buf_.dh, p_.P, dh_width()}, static_cast<T*>(a_.dreset_h));
        if (C::kHasC) {
          hand_over(p_, t, mine, {buf_.dc, p_.H, g_.width()}, static_cast<T*>(a_.dreset_c));
        }
        barrier_.wait(among);
      }
    }
  }

  void cells(int64_t t, Range rows, Range panels, const GateChunk<T>& gates, const Chunk& all,
             int64_t chunk_row, const T* h_cut) {
    Segments<T> segments(p_, t, rows, a_.y, a_.ldy, a_.h0);
    if (h_cut) segments.read(h_cut, p_.P);
    if (h_cut && C::kHasC) {
      cut_c(a_, t, segments, {panels.begin * g_.units(), panels.end * g_.units()}, keep_.c, buf_.c0,
            g_.width(), buf_.c_cut);
    }
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      for (int u = 0; u < kUnitVectors; ++u) {
        for (int i = 0; i < segments.count; ++i) {
          const Segment<T>& s = segments.item[i];
          const int64_t row = chunk_row + s.rows.begin, at = u * C::kSlots * W;
          cell(t, panel * g_.units() + u * W, s, gates.at(panel, row, kRow) + at,
               all.grads.at(panel, row, kRow) + at, h_cut != nullptr);
        }
      }
      if (narrow()) {
        const int64_t row = chunk_row + rows.begin;
        const T* grads = all.grads.at(panel, row, kRow);
        plan_.narrow->narrow({.from = reinterpret_cast<const float*>(grads),
                              .stride = kRow,
                              .rows = rows.size(),
                              .n = kRow,
                              .to = all.words.at(panel, row, kRow / 2),
                              .to_stride = kRow / 2,
                              .scales = nullptr});
      }
    }
  }

  // One vector of units of a segment: reads the gates that were kept at `in`, puts their gradients
  // at `out`.
  void cell(int64_t t, int64_t unit, const Segment<T>& segment, const T* in, T* out, bool cuts) {
    const int lanes = int(std::clamp<int64_t>(p_.H - unit, 0, W));
    // As in forward, all that the rows share is read before the first store.
    const int64_t rows = segment.rows.size(), width = g_.width(), begin = segment.rows.begin;
    if (lanes == 0) {  // padding of the panel; the products read it
      for (int64_t r = 0; r < rows; ++r, out += kRow) V(T(0)).store(out);
      return;
    }
    const int64_t first = p_.rows().offset(t) + begin;
    const T* h_now = y() + first * a_.ldy + unit;
    const T* h_before = segment.h_prev ? segment.h_prev + unit : nullptr;
    const int64_t y_stride = a_.ldy, h_stride = segment.stride, dy_stride = a_.lddy;
    const T* dy = static_cast<const T*>(p_.projected ? nullptr : a_.dy);
    if (dy) dy += first * dy_stride + unit;
    const T* dc_given = static_cast<const T*>(C::kHasC ? a_.dc : nullptr);
    const int64_t dc_stride = a_.lddc;
    if (dc_given) dc_given += first * dc_stride + unit;
    const int64_t dh_stride = p_.projected ? width : dh_width();
    T* dh_state = (p_.projected ? buf_.dh_hidden : buf_.dh) + begin * dh_stride + unit;
    T* dc_state = buf_.dc + begin * width + unit;
    const T* c_now = keep_.c + first * width + unit;
    const T* c_before =
        cuts ? buf_.c_cut + begin * width + unit
             : (segment.run.carried ? keep_.c : buf_.c0) + segment.run.from * width + unit;
    for (int64_t r = 0; r < rows; ++r, in += kRow, out += kRow) {
      V s[C::kSlots], h{}, h_prev{}, c{}, c_prev{}, dc{};
      if constexpr (C::kKeepsSlots) {
#pragma GCC unroll 4
        for (int i = 0; i < C::kSlots; ++i) s[i] = V::load(in + i * W);
      } else {
        h = V::load(h_now + r * y_stride, lanes);
      }
      if constexpr (C::kUsesPreviousH) {
        h_prev = h_before ? V::load(h_before + r * h_stride, lanes) : V(T(0));
      }
      if constexpr (C::kHasC) {
        c = V::load(c_now + r * width);
        c_prev = V::load(c_before + r * width);
        dc = V::load(dc_state + r * width);
        if (dc_given) dc = dc + V::load(dc_given + r * dc_stride, lanes);
      }
      V dh = V::load(dh_state + r * dh_stride);
      if (dy) dh = dh + V::load(dy + r * dy_stride, lanes);
      C::backward(s, h, h_prev, c_prev, c, dh, dc);
#pragma GCC unroll 4
      for (int i = 0; i < C::kSlots; ++i) {
        // Padded lanes may hold inf * 0 = nan, which the products would spread.
        if (lanes < W) V(T(0)).store(out + i * W);
        s[i].store(out + i * W, lanes);
      }
      if constexpr (C::kHasC) dc.store(dc_state + r * width);
      if constexpr (C::kUsesPreviousH) dh.store(dh_state + r * dh_stride);
    }
  }

  // dh of the step before = dgates W_hh (+ what the cell passes on unweighted).
  void previous_h(int64_t t, Range rows, const Chunk& all, int64_t chunk_row, int id, int n) {
    const Range mine = share(products_.groups(Side::kRecurrent), id, n);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const Group columns = products_.group(Side::kRecurrent, to_and_fro(mine, i, t));
      T* dh = buf_.dh + rows.begin * dh_width() + columns.column;
      products_.multiply(Side::kRecurrent, columns,
                         {.grads = all.grads.at(0, chunk_row + rows.begin, kRow),
                          .words = all.words.at(0, chunk_row + rows.begin, kRow / 2),
                          .panel_stride = all.grads.panel_stride,
                          .init = C::kUsesPreviousH ? dh : nullptr,
                          .c = dh,
                          .ld = dh_width(),
                          .rows = rows.size(),
                          .tail = W});
    }
  }

  // dx of a chunk: of the thread's own rows, whose gate gradients it has just made, or else its
  // part of the columns.
  void inputs(const Chunk& all, Range rows, int id, int n) {
    const bool whole = rows.size() == p_.B;
    const Range mine = share(products_.groups(Side::kInput), id, n);
    const Range steps = all.steps;
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const Group columns = products_.group(Side::kInput, i);
      for (int64_t t = steps.begin; t < steps.end; t = whole ? steps.end : t + 1) {
        const int64_t count = whole ? all.size : p_.rows().active(t, rows.begin, rows.end);
        if (count == 0) continue;
        const int64_t row = p_.rows().offset(t) + rows.begin;
        T* dx = static_cast<T*>(a_.dx) + row * p_.I + columns.column;
        products_.multiply(Side::kInput, columns,
                           {.grads = all.grads.at(0, row - all.first, kRow),
                            .words = all.words.at(0, row - all.first, kRow / 2),
                            .panel_stride = all.grads.panel_stride,
                            .init = a_.accumulate_dx ? dx : nullptr,
                            .c = dx,
                            .ld = p_.I,
                            .rows = count,
                            .tail = columns.tail});
      }
    }
  }

  // The same for wide weights, of all rows of one or two chunks. Each thread packs the weights that
  // it needs. It goes through a few panels at a time, so that their gate gradients (256 KiB of 512
  // rows, without AVX-512) stay near for every group of columns.
  void wide_inputs(int64_t first, int64_t last, int id, int n) {
    int64_t size = 0;
    for (int64_t i = first; i <= last; ++i) size += chunk(i).size;
    const T* w = static_cast<const T*>(a_.w_ih);
    T* packed = buf_.scratch + id * buf_.scratch_size;
    const Range mine = share(products_.groups(Side::kInput) * size, id, n);
    const int64_t together = panels_of_block(g_, sizeof(T));
    for (int64_t panel = 0; panel < g_.panels; panel += together) {
      const Range panels{panel, std::min(panel + together, g_.panels)};
      for (int64_t at = mine.begin, next; at < mine.end; at = next) {
        const Group columns = products_.group(Side::kInput, at / size);
        next = std::min(mine.end, (at / size + 1) * size);
        pack_group(p_, g_, Side::kInput, w, p_.I, columns, panels, packed);
        Range rows{at % size, at % size + next - at};
        for (int64_t i = first; i <= last; ++i) {
          const Chunk all = chunk(i);
          const Range some{rows.begin, std::min(rows.end, all.size)};
          if (some.size() > 0) add_dx(columns, panels, packed, all, some);
          rows = {std::max<int64_t>(rows.begin - all.size, 0), rows.end - all.size};
        }
      }
    }
  }

  // Adds what a few panels make of dx to some rows of a chunk.
  void add_dx(const Group& columns, Range panels, const T* packed, const Chunk& all, Range rows) {
    T* dx = static_cast<T*>(a_.dx) + (all.first + rows.begin) * p_.I + columns.column;
    const bool sums = a_.accumulate_dx || panels.begin > 0;
    product<T>(columns.vectors, {.a = all.grads.at(panels.begin, rows.begin, kRow),
                                 .a_row = kRow,
                                 .a_block = all.grads.panel_stride,
                                 .blocks = panels.size(),
                                 .depth = kDepth,
                                 .w = packed,
                                 .w_k = int64_t(columns.vectors) * W,
                                 .init = sums ? dx : nullptr,
                                 .init_row = p_.I,
                                 .c = dx,
                                 .c_row = p_.I,
                                 .rows = rows.size(),
                                 .tail = columns.tail});
  }

  const BackwardParams& a_;
  const Problem& p_;
  const Plan& plan_;
  const Geometry g_;
  const BackwardBuffers<T> buf_;
  Reserve<T> keep_;  // of all steps, or of the piece at hand
  GateProducts<T, kVectors, kSlots> products_;
  WeightGradients<T, kVectors, kSlots> weights_;
  Again<T, C, kUnitVectors> again_;
  Barrier barrier_;
  Rounds rounds_;
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

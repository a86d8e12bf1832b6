// dW_ih, dW_hh, dW_hr and the bias gradients, a chunk of steps at a time. The gate gradients of a
// panel are one run of rows and are the vectors of the product; x and h are read by broadcast where
// they lie. The sums are turned into torch's layout at the end. With few rows that would cost more
// than the product: there the vectors are those of x and h, and the sums lie right at once. Threads
// own parts of the sums, so no two add to the same element.
#pragma once

#include "cpu/forward.h"
#include "cpu/gemm.h"
#include "cpu/pack.h"
#include "cpu/row_words.h"
#include "cpu/team.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// kVectors, kSlots: a panel's vectors of gates and of slots; a GRU has one slot more, for n's
// recurrent part. The cell is no parameter, so that both RNNs share one copy of this code.
template <class T, int kVectors, int kSlots>
class WeightGradients {
 public:
  WeightGradients(const BackwardParams& params, const Plan& plan, const Geometry& g,
                  const BackwardBuffers<T>& buf, const Reserve<T>& keep)
      : a_(params), p_(params.problem), plan_(plan), g_(g), buf_(buf), keep_(keep) {}

  // Where no step has an h before it, nothing else sets dW_hh.
  void clear(int id, int n) {
    if (!a_.dw_hh || has_previous_states()) return;
    const Range mine = share(gates_of(p_.cell) * p_.H * p_.P, id, n);
    T* dw = static_cast<T*>(a_.dw_hh);
    std::fill(dw + mine.begin, dw + mine.end, T(0));
  }

  // In bfloat16: a thread's share of what the products of a chunk read of x and h. Before add(),
  // with a barrier between.
  void narrow_rows(Range steps, int64_t i, int id, int n) {
    const int64_t first = p_.rows().offset(steps.begin), size = p_.rows().offset(steps.end) - first;
    const auto turn = [&](int64_t K, uint32_t* to, const auto& each_run) {
      const Range blocks = share((K + W - 1) / W, id, n);
      const Range columns{blocks.begin * W, std::min(K, blocks.end * W)};
      if (columns.size() <= 0) return;
      const auto** rows = reinterpret_cast<const float**>(buf_.row_starts) + id * size;
      std::fill(rows, rows + size, nullptr);
      each_run([&](const Run& run) {
        const auto* from = reinterpret_cast<const float*>(run.rows);
        for (int64_t r = 0; r < run.count; ++r) rows[run.row + r] = from + r * run.ld;
      });
      turn_rows(*plan_.narrow, rows, size, columns, to, buf_.words_of_rows);
    };
    if (a_.dw_ih) {
      const Run x{static_cast<const T*>(a_.x) + first * p_.I, p_.I, 0, size};
      turn(p_.I, buf_.x_words, [&](auto&& add) { add(x); });
    }
    if (a_.dw_hh && has_previous_states()) {
      turn(p_.P, buf_.h_words,
           [&](auto&& add) { previous_states(steps, first, buf_.h_cut[i % plan_.chunks], add); });
    }
  }

  // Adds a part of the i-th chunk of the pass, whose gate gradients are at `grads`.
  void add(Range steps, int64_t i, const T* grads, Part part, int id) {
    const int64_t first = p_.rows().offset(steps.begin), size = p_.rows().offset(steps.end) - first;
    const Chunk chunk{grads, buf_.gate_words[i % plan_.chunks], size * kRow, i == 0};
    if (narrow()) in_words(chunk, part, id);
    if (a_.dw_ih && !narrow()) {
      const Run x{static_cast<const T*>(a_.x) + first * p_.I, p_.I, 0, size};
      matrix(chunk, result_of(Side::kInput), part, id, [&](auto&& add) { add(x); });
    }
    if (a_.dw_hh && !narrow()) {
      matrix(chunk, result_of(Side::kRecurrent), part, id,
             [&](auto&& add) { previous_states(steps, first, buf_.h_cut[i % plan_.chunks], add); });
    }
    if (a_.db_ih || a_.db_hh) biases(chunk, part.of(g_.panels));
    if (a_.dw_hr) projection(first, size, i, part.of(p_.P));
  }

  void finish(int id, int n) {
    const Range panels = share(g_.panels, id, n);
    T* scratch = buf_.scratch + id * buf_.scratch_size;
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      if (a_.dw_ih) turn_over(result_of(Side::kInput), panel, scratch);
      if (a_.dw_hh && has_previous_states()) turn_over(result_of(Side::kRecurrent), panel, scratch);
      if (a_.db_ih || a_.db_hh) {
        unpack_bias(p_, g_, buf_.dbias, static_cast<T*>(a_.db_ih), static_cast<T*>(a_.db_hh),
                    panel);
      }
    }
  }

 private:
  using V = Vec<T>;
  static constexpr int W = kLanes<T>;
  static constexpr int64_t kRow = kSlots * W, kDepth = kVectors * W;
  static constexpr int64_t kRecurrent = (kSlots - kVectors) * W;

  bool narrow() const { return sizeof(T) == 4 && plan_.narrow; }
  bool has_previous_states() const { return p_.T > 1 || a_.h0 || (a_.reset_h && has_cuts(p_, 0)); }
  int64_t columns_in_place(Side side) const {
    return side == Side::kInput ? plan_.input_columns_in_place : plan_.state_columns_in_place;
  }
  // y may be that of two directions.
  bool gathers(Side side) const {
    return (side == Side::kInput ? p_.I : std::min(a_.ldy, 2 * p_.P)) >= plan_.gathers_from;
  }

  // The gate gradients of a chunk of steps; `fresh`: nothing has been summed before it.
  struct Chunk {
    const T* grads;
    const uint32_t* words;  // the same in bfloat16, where products are of that
    int64_t stride;         // of a panel of grads; of words half
    bool fresh;
  };

  // Rows of x or h at one stride; their gate gradients are the chunk's from row `row` on.
  struct Run {
    const T* rows;
    int64_t ld, row, count;
  };

  // dW_ih or dW_hh.
  struct Result {
    Side side;
    int64_t K;  // columns
    T* panels;  // the workspace of its sums
    T* dw;      // [G*H, K]
  };
  Result result_of(Side side) const {
    if (side == Side::kInput) return {side, p_.I, buf_.dw_ih, static_cast<T*>(a_.dw_ih)};
    return {side, p_.P, buf_.dw_hh, static_cast<T*>(a_.dw_hh)};
  }

  // Where a panel's sums lie until they are turned over, of columns that are not summed in place. A
  // whole vector of units lies in its own rows of dw, as [K][lanes]. Panels that H does not fill,
  // and the columns that come after those in place, lie in the workspace, in `panels`.
  struct Sums {
    T* base;
    int64_t row;
    int64_t at[4];  // of each vector
  };
  Sums sums_of(const Result& to, int64_t panel) const {
    const int64_t in_place = columns_in_place(to.side), whole = g_.whole_panels(p_.H);
    if (in_place == 0 && panel < whole) {
      Sums sums{to.dw, W, {}};
      for (int v = 0; v < kVectors; ++v) {
        sums.at[v] = gate_rows(p_, g_, to.side, panel, v).row * to.K;
      }
      return sums;
    }
    const int64_t before = in_place ? panel : panel - whole;
    return {to.panels + before * (to.K - in_place) * kDepth, kDepth, {0, W, 2 * W, 3 * W}};
  }

  void turn_over(const Result& result, int64_t panel, T* scratch) {
    const Sums sums = sums_of(result, panel);
    const int64_t K = result.K, in_place = columns_in_place(result.side);
    for (int v = 0; v < kVectors; ++v) {
      const GateRows rows = gate_rows(p_, g_, result.side, panel, v);
      T *from = sums.base + sums.at[v], *to = result.dw + rows.row * K + in_place;
      if (from != to) {
        unpack_vector(from, sums.row, K - in_place, rows.lanes, to, K);
      } else {
        unpack_vector(from, W, K, W, scratch, K);
        std::copy(scratch, scratch + W * K, to);
      }
    }
  }

  // dw[G*H, K] (+)= dgates' . rows, over the runs that `each_run` hands to what it is given: all of
  // them for one part of the sums, which so stays in cache, then for the next part.
  template <class EachRun>
  void matrix(const Chunk& chunk, const Result& to, Part part, int id, const EachRun& each_run) {
    const T* dgates = chunk.grads + (to.side == Side::kInput ? 0 : kRecurrent);
    summed_in_place(chunk, dgates, to, part, each_run);
    if (gathers(to.side)) return gathered(chunk, dgates, to, part, id, each_run);
    const int64_t in_place = columns_in_place(to.side), rest = to.K - in_place;
    const Range columns = part.of(rest * g_.panels);
    for (int64_t at = columns.begin, next; at < columns.end; at = next) {
      const int64_t panel = at / rest, column = in_place + at % rest;
      next = std::min(columns.end, (panel + 1) * rest);
      const Sums sums = sums_of(to, panel);
      bool fresh = chunk.fresh;
      each_run([&](const Run& run) {
        columns_of_panel(chunk, dgates + panel * chunk.stride, sums, column - in_place, next - at,
                         {run.rows + column, run.ld, run.row, run.count}, fresh);
        fresh = false;
      });
    }
  }

  // Both in bfloat16, of what narrow_rows() made: the columns of W_ih, then those of W_hh, panel by
  // panel. The gate gradients of a panel become words of two rows as they are read.
  void in_words(const Chunk& chunk, Part part, int id) {
    const int64_t inputs = a_.dw_ih ? p_.I : 0;
    const int64_t all = inputs + (a_.dw_hh && has_previous_states() ? p_.P : 0);
    const Range columns = part.of(all * g_.panels);
    for (int64_t at = columns.begin, next; at < columns.end; at = next) {
      const int64_t panel = at / all, before = panel * all;
      next = std::min(columns.end, before + all);
      const Range of_inputs{at - before, std::min(next - before, inputs)};
      const Range of_states{std::max(at - before, inputs) - inputs, next - before - inputs};
      if (of_inputs.size() > 0) {
        pair_rows(chunk, Side::kInput, panel, id);
        in_words(chunk, result_of(Side::kInput), buf_.x_words, panel, of_inputs, id);
      }
      if (of_states.size() <= 0) continue;
      const bool paired = of_inputs.size() > 0 && kSlots == kVectors;
      if (!paired) pair_rows(chunk, Side::kRecurrent, panel, id);
      in_words(chunk, result_of(Side::kRecurrent), buf_.h_words, panel, of_states, id);
    }
  }
  uint32_t* words(int id) const {
    return reinterpret_cast<uint32_t*>(buf_.scratch + id * buf_.scratch_size);
  }
  void pair_rows(const Chunk& chunk, Side side, int64_t panel, int id) {
    const uint32_t* row = chunk.words + panel * chunk.stride / 2;
    if (side == Side::kRecurrent) row += kRecurrent / 2;
    uint32_t* to = words(id);
    for (int64_t left = chunk.stride / kRow; left > 0; left -= 2, row += kRow, to += kDepth) {
      pair_words(row, left > 1 ? row + kRow / 2 : nullptr, kVectors, to);
    }
  }
  void in_words(const Chunk& chunk, const Result& to, const uint32_t* rows, int64_t panel,
                Range columns, int id) {
    const Sums sums = sums_of(to, panel);
    auto* c = reinterpret_cast<float*>(sums.base + columns.begin * sums.row);
    plan_.narrow->product[kVectors - 1]({.a = rows + columns.begin * buf_.words_of_rows,
                                         .a_row = buf_.words_of_rows,
                                         .depth = (chunk.stride / kRow + 1) / 2,
                                         .w = words(id),
                                         .init = chunk.fresh ? nullptr : c,
                                         .init_row = sums.row,
                                         .c = c,
                                         .c_row = sums.row,
                                         .rows = columns.size(),
                                         .tail = W,
                                         .at = {sums.at[0], sums.at[1], sums.at[2], sums.at[3]}});
  }

  // With few rows, whole vectors of columns go where torch wants them at once, along the rows of
  // dw: down its columns every store would be in another page.
  template <class EachRun>
  void summed_in_place(const Chunk& chunk, const T* dgates, const Result& result, Part part,
                       const EachRun& each_run) {
    const int64_t K = result.K, in_place = columns_in_place(result.side);
    const int64_t groups = groups_of(in_place, W);
    const int64_t G = gates_of(p_.cell), gates = g_.panels * G;
    const Range tiles = part.of(groups * gates);
    for (int64_t at = tiles.begin; at < tiles.end; ++at) {
      const Group group = group_of(in_place, W, at % groups);
      const int64_t gate = at / groups, panel = gate / G;
      const GateRows rows = gate_of_panel(p_, g_, result.side, panel, int(gate % G));
      const T* a = dgates + panel * chunk.stride + gate % G * W;
      T* to = result.dw + rows.row * K + group.column;
      const T* sum = nullptr;
      each_run([&](const Run& run) {
        product<T>(group.vectors, {.a = a + run.row * kRow,
                                   .a_row = 1,
                                   .a_k = kRow,
                                   .depth = run.count,
                                   .w = run.rows + group.column,
                                   .w_k = run.ld,
                                   .init = sum,
                                   .init_row = K,
                                   .c = to,
                                   .c_row = K,
                                   .rows = rows.lanes});
        sum = to;
      });
    }
  }

  // The same of rows that lie far apart: some columns at a time are gathered, and all panels pass
  // them. The short runs of packed sequences become long ones so.
  template <class EachRun>
  void gathered(const Chunk& chunk, const T* dgates, const Result& to, Part part, int id,
                const EachRun& each_run) {
    T* scratch = buf_.scratch + id * buf_.scratch_size;
    const int64_t parts = (to.K + kGatheredColumns - 1) / kGatheredColumns;
    const Range mine = part.of(parts * g_.panels);
    for (int64_t at = mine.begin, next; at < mine.end; at = next) {
      const Range columns = share(to.K, int(at / g_.panels), int(parts));
      const int64_t first = at % g_.panels;
      next = std::min(mine.end, at - first + g_.panels);
      bool fresh = chunk.fresh;
      Run some{scratch, kGatheredColumns, 0, 0};
      const auto add = [&] {
        for (int64_t panel = first; some.count > 0 && panel < first + next - at; ++panel) {
          const Sums sums = sums_of(to, panel);
          columns_of_panel(chunk, dgates + panel * chunk.stride, sums, columns.begin,
                           columns.size(), some, fresh);
        }
        fresh = fresh && some.count == 0;
        some.count = 0;
      };
      each_run([&](const Run& run) {
        for (int64_t row = 0; row < run.count; ++row) {
          if (some.count == kGatheredRows || some.row + some.count != run.row + row) add();
          if (some.count == 0) some.row = run.row + row;
          const T* from = run.rows + row * run.ld;
          std::copy(from + columns.begin, from + columns.end, scratch + some.count++ * some.ld);
        }
      });
      add();
    }
  }

  // Adds to `count` columns of a panel's sums, from the first of which on `a` holds x or h.
  void columns_of_panel(const Chunk& chunk, const T* dgates, const Sums& sums, int64_t column,
                        int64_t count, const Run& a, bool fresh) {
    dgates += a.row * kRow;
    T* to = sums.base + column * sums.row;
    const bool beyond_l2 = g_.panels * chunk.stride * int64_t(sizeof(T)) > kL2Bytes;
    product<T, kVectors>({.a = a.rows,
                          .a_row = 1,
                          .a_k = a.ld,
                          .depth = a.count,
                          .w = dgates,
                          .w_k = kRow,
                          .init = fresh ? nullptr : to,
                          .init_row = sums.row,
                          .c = to,
                          .c_row = sums.row,
                          .rows = count,
                          .at = {sums.at[0], sums.at[1], sums.at[2], sums.at[3]},
                          .next = beyond_l2 ? dgates + chunk.stride : nullptr});
  }

  // h before each step of a chunk, whose first row is given; where it is 0, nothing. Steps with
  // cuts have theirs in h_cut.
  template <class Add>
  void previous_states(Range steps, int64_t first, const T* h_cut, const Add& add) {
    if (!has_previous_states()) return;
    for (int64_t t = steps.begin, end; t < steps.end; t = end) {
      end = t + 1;
      if (has_cuts(p_, t)) {
        const int64_t row = p_.rows().offset(t) - first;
        add(Run{h_cut + row * p_.P, p_.P, row, p_.rows().active(t)});
        continue;
      }
      end = p_.cuts ? end : steps.end;
      while (end < steps.end && !has_cuts(p_, end)) ++end;
      p_.rows().each_previous(t, end, [&](const Rows::Run& run) {
        const States<T> h = states_of<T>(run, p_, a_.y, a_.ldy, a_.h0);
        if (h.rows) add(Run{h.rows, h.stride, run.begin - first, run.size()});
      });
    }
  }

  void biases(const Chunk& chunk, Range panels) {
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      V sum[kSlots];
      T* out = buf_.dbias + panel * kRow;
#pragma GCC unroll 4
      for (int v = 0; v < kSlots; ++v) sum[v] = V(T(0));
      const T* row = chunk.grads + panel * chunk.stride;
      for (const T* end = row + chunk.stride; row < end; row += kRow) {
#pragma GCC unroll 4
        for (int v = 0; v < kSlots; ++v) sum[v] = sum[v] + V::load(row + v * W);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kSlots; ++v) {
        if (!chunk.fresh) sum[v] = sum[v] + V::load(out + v * W);
        sum[v].store(out + v * W);
      }
    }
  }

  // dW_hr[P, H] (+)= dh' . hidden, in torch's layout at once.
  void projection(int64_t first, int64_t size, int64_t i, Range rows) {
    const int64_t width = round_up(p_.P, W);
    for (int64_t index = 0; index < groups_of(p_.H, W); ++index) {
      const Group group = group_of(p_.H, W, index);
      T* dw = static_cast<T*>(a_.dw_hr) + rows.begin * p_.H + group.column;
      product<T>(group.vectors, {.a = buf_.dh_projected[i % plan_.chunks] + rows.begin,
                                 .a_row = 1,
                                 .a_k = width,
                                 .depth = size,
                                 .w = keep_.hidden + first * g_.width() + group.column,
                                 .w_k = g_.width(),
                                 .init = i > 0 ? dw : nullptr,
                                 .init_row = p_.H,
                                 .c = dw,
                                 .c_row = p_.H,
                                 .rows = rows.size(),
                                 .tail = group.tail});
    }
  }

  const BackwardParams& a_;
  const Problem& p_;
  const Plan& plan_;
  const Geometry& g_;
  const BackwardBuffers<T>& buf_;
  const Reserve<T>& keep_;
};

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

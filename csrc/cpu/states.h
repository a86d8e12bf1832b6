// The states that rows of a step begin with: those of the step before, h0 and c0 where a sequence
// begins, and, where it is cut, the reset state; and the gates of a chunk of steps.
#pragma once

#include "cpu/layout.h"
#include "cpu/simd.h"
#include "cpu/team.h"

namespace fusedrnn::cpu::FUSEDRNN_ISA {
namespace {

// A chunk of gates as a thread sees it: its own rows (or all), panel by panel.
template <class T>
struct GateChunk {
  T* base;
  int64_t panel_stride;
  T* at(int64_t panel, int64_t row, int64_t width) const {
    return base + panel * panel_stride + row * width;
  }
};

// h, as rows at one stride; null: zeros.
template <class T>
struct States {
  const T* rows;
  int64_t stride;
};

// Rows as words. There are narrow products for T = float alone.
template <class T>
void narrow_rows(const Narrow& narrow, States<T> states, int64_t rows, int64_t n,
                 const WordRows& to) {
  narrow.narrow({reinterpret_cast<const float*>(states.rows), states.stride, rows, n, to.words,
                 to.row, to.scales});
}

// What a run of rows reads: h of the step before, or h0.
template <class T>
States<T> states_of(const Rows::Run& run, const Problem& p, const void* y, int64_t ldy,
                    const void* h0) {
  if (run.carried) return {static_cast<const T*>(y) + run.from * ldy, ldy};
  return {h0 ? static_cast<const T*>(h0) + run.from * p.P : nullptr, p.P};
}

// Batch rows of a step that go through the cell together, and what they read.
template <class T>
struct Segment {
  Range rows;
  const T* h_prev;  // of rows.begin; null: zeros
  int64_t stride;
  Rows::Run run;
};

template <class T>
struct Segments {
  Segment<T> item[2];
  int count = 0;

  Segments(const Problem& p, int64_t t, Range slice, const void* y, int64_t ldy, const void* h0) {
    for (const Rows::Run& run : p.rows().previous(t, slice.begin, slice.end)) {
      const States<T> h = states_of<T>(run, p, y, ldy, h0);
      item[count++] = {{run.begin, run.end}, h.rows, h.stride, run};
    }
  }
  // They read h from here instead, row r at h + r*stride.
  void read(const T* h, int64_t stride) {
    for (int i = 0; i < count; ++i) {
      item[i].h_prev = h + item[i].rows.begin * stride;
      item[i].stride = stride;
    }
  }
};

// Whether the state is cut before any row of step t.
inline bool has_cuts(const Problem& p, int64_t t) {
  const int64_t active = p.rows().active(t);
  return p.cuts && active > 0 && std::memchr(p.cuts + p.rows().offset(t), 1, active);
}
inline bool is_cut(const Problem& p, int64_t t, int64_t row) {
  return p.cuts[p.rows().offset(t) + row];
}

// The state that row r has after a cut; null: zeros. Params: either pass's.
template <class T, class Params>
const T* reset_h(const Params& a, int64_t r) {
  const auto* all = static_cast<const T*>(a.reset_h);
  return all ? all + r * a.reset_rows * a.problem.P : nullptr;
}
template <class T, class Params>
const T* reset_c(const Params& a, int64_t r) {
  const auto* all = static_cast<const T*>(a.reset_c);
  return all ? all + r * a.reset_rows * a.problem.H : nullptr;
}

// n elements of a row, zeros where there is none.
template <class T>
void copy_row(const T* from, int64_t n, T* to) {
  if (from) {
    std::copy(from, from + n, to);
  } else {
    std::fill(to, to + n, T(0));
  }
}
// h before step t for some of its rows, with cuts made; row r to to + r*P.
template <class T, class Params>
void cut_h(const Params& a, int64_t t, const Segments<T>& segments, Range rows, T* to) {
  const int64_t P = a.problem.P;
  for (int i = 0; i < segments.count; ++i) {
    const Segment<T>& s = segments.item[i];
    const int64_t end = std::min(rows.end, s.rows.end);
    for (int64_t r = std::max(rows.begin, s.rows.begin); r < end; ++r) {
      const T* h = s.h_prev ? s.h_prev + (r - s.rows.begin) * s.stride : nullptr;
      copy_row(is_cut(a.problem, t, r) ? reset_h<T>(a, r) : h, P, to + r * P);
    }
  }
}

// c of a cut row, of some units.
template <class Params, class T>
void reset_c_to(const Params& a, int64_t r, Range units, T* to) {
  const T* c = reset_c<T>(a, r);
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    to[unit] = c && unit < a.problem.H ? c[unit] : T(0);
  }
}
// c before step t likewise, of some units: rows of what was kept or of c0, row r to to + r*width.
template <class T, class Params>
void cut_c(const Params& a, int64_t t, const Segments<T>& segments, Range units, const T* kept,
           const T* c0, int64_t width, T* to) {
  for (int i = 0; i < segments.count; ++i) {
    const Segment<T>& s = segments.item[i];
    const T* before = (s.run.carried ? kept : c0) + s.run.from * width;
    for (int64_t r = s.rows.begin; r < s.rows.end; ++r, before += width) {
      T* row = to + r * width;
      if (is_cut(a.problem, t, r)) {
        reset_c_to(a, r, units, row);
      } else {
        std::copy(before + units.begin, before + units.end, row + units.begin);
      }
    }
  }
}

// Gradients of a state as they go back: [B][width], n of each row in use.
template <class T>
struct Slopes {
  T* rows;
  int64_t n, width;
};
// What goes back past a cut before step t is the reset state's, and nothing of it the step's
// before. `sums`: [B][n], null: not wanted.
template <class T>
void hand_over(const Problem& p, int64_t t, Range rows, Slopes<T> slopes, T* sums) {
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    if (!is_cut(p, t, r)) continue;
    T* row = slopes.rows + r * slopes.width;
    for (int64_t i = 0; sums && i < slopes.n; ++i) sums[r * slopes.n + i] += row[i];
    std::fill(row, row + slopes.width, T(0));
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::FUSEDRNN_ISA

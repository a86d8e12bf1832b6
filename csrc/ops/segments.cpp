// See segments.h.
#include "ops/segments.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "ops/check.h"
#include "ops/memory.h"

namespace fusedrnn::ops {

Segments::Segments(int64_t T, int64_t B, const int64_t* lengths, const bool* resets)
    : T_(T), B_(B), ends_(B, T) {
  if (lengths) std::copy(lengths, lengths + B, ends_.begin());
  for (const int64_t end : ends_) whole_ = whole_ && end == T;
  cut(resets);
  sort();
  if (!whole_) place();
}

void Segments::cut(const bool* resets) {
  std::vector<int64_t> begin(B_, 0);
  std::vector<bool> restarts(B_, false);
  const auto add = [&](int64_t b, int64_t end) {
    const bool first = begin[b] == 0, last = end == ends_[b];
    segments_.push_back({b, begin[b], end - begin[b], first, last, !first || restarts[b]});
  };
  for (int64_t t = 0; resets && t < T_; ++t) {
    const bool* const step = resets + t * B_;
    const bool* at = step;
    while ((at = static_cast<const bool*>(std::memchr(at, 1, step + B_ - at)))) {
      const int64_t b = at++ - step;
      if (t >= ends_[b]) continue;
      restarts_ = true;
      if (t == 0) {
        restarts[b] = true;
        continue;
      }
      add(b, t);
      begin[b] = t;
      whole_ = false;
    }
  }
  for (int64_t b = 0; b < B_; ++b) {
    if (ends_[b] > 0) add(b, ends_[b]);
  }
}

// Longest first, and by row among equals, as they were found.
void Segments::sort() {
  int64_t steps = 0;
  for (const Segment& s : segments_) steps = std::max(steps, s.length);
  std::vector<int64_t> longer(steps + 2, 0);  // longer[n]: how many are of n steps or more
  for (const Segment& s : segments_) ++longer[s.length];
  for (int64_t n = steps; n >= 0; --n) longer[n] += longer[n + 1];
  offsets_.assign(steps + 1, 0);
  for (int64_t t = 0; t < steps; ++t) offsets_[t + 1] = offsets_[t] + longer[t + 1];
  std::vector<Segment> sorted(segments_.size());
  for (const Segment& s : segments_) sorted[longer[s.length + 1]++] = s;
  segments_ = std::move(sorted);
}

void Segments::place() {
  places_.resize(offsets_.back());
  for (int64_t t = 0; t < steps(); ++t) {
    int64_t* const step = places_.data() + offsets_[t];
    const int64_t active = offsets_[t + 1] - offsets_[t];
    for (int64_t i = 0; i < active; ++i) {
      step[i] = (segments_[i].begin + t) * B_ + segments_[i].row;
    }
  }
}

namespace {

// body(begin, end) over parts of n rows, by as many threads as `bytes` pay for.
template <class Body>
void in_parts(int64_t n, size_t bytes, const Body& body) {
  constexpr size_t kBytesPerThread = size_t(256) << 10;
  const cpu::Team workers = team();
  const int threads = int(std::min<size_t>(workers.threads, bytes / kBytesPerThread));
  if (threads < 2) return body(0, n);
  struct Context {
    int64_t n;
    const Body& body;
  } context{n, body};
  workers.run(
      threads,
      [](void* shared, int id, int of) {
        const Context& c = *static_cast<Context*>(shared);
        c.body(c.n * id / of, c.n * (id + 1) / of);
      },
      &context);
}

// to[target[i]] = or += from[source[i]] for i < count, rows of the last dimension; no numbers: i
// itself. From no tensor come zeros. A row is added to in the order of i, on a CUDA device too, so
// that sums come out the same every time.
struct Moves {
  std::vector<int64_t> source, target;
  void add(int64_t from, int64_t to) {
    source.push_back(from);
    target.push_back(to);
  }
};
enum class Move { kSet, kAdd };

#ifdef FUSEDRNN_WITH_CUDA
// Rows of the last dimension, all others taken as one.
Tensor as_rows(const Tensor& tensor) { return tensor.view({-1, tensor.size(-1)}); }

// By torch's operators: sums of index_put_ come out the same every time, as those of index_add_ do
// not.
void move_on_cuda(const Tensor& from, const std::vector<int64_t>& source, const Tensor& to,
                  const std::vector<int64_t>& target, Move how) {
  const auto index_for = [&](const std::vector<int64_t>& index) {
    return index_on_device(index, to.device());
  };
  const Tensor rows = !from.defined()  ? at::zeros({1, 1}, to.options()).expand({-1, to.size(-1)})
                      : source.empty() ? as_rows(from)
                                       : as_rows(from).index_select(0, index_for(source));
  if (target.empty()) {
    as_rows(to).copy_(rows);
  } else {
    as_rows(to).index_put_({index_for(target)}, rows, how == Move::kAdd);
  }
}
#endif

void move(const Tensor& from, const std::vector<int64_t>& source, const Tensor& to,
          const std::vector<int64_t>& target, Move how = Move::kSet) {
  const auto count = int64_t(std::max(source.size(), target.size()));
  if (count == 0) return;
#ifdef FUSEDRNN_WITH_CUDA
  if (to.is_cuda()) return move_on_cuda(from, source, to, target, how);
#endif
  const auto source_of = [&](int64_t i) { return source.empty() ? i : source[i]; };
  const auto target_of = [&](int64_t i) { return target.empty() ? i : target[i]; };
  const int64_t n = to.size(-1);
  if (how == Move::kAdd) {
    return AT_DISPATCH_FLOATING_TYPES(to.scalar_type(), "segments", [&] {
      for (int64_t i = 0; i < count; ++i) {
        const auto* row = from.const_data_ptr<scalar_t>() + source_of(i) * n;
        auto* sum = to.mutable_data_ptr<scalar_t>() + target_of(i) * n;
        for (int64_t k = 0; k < n; ++k) sum[k] += row[k];
      }
    });
  }
  const size_t bytes = n * to.element_size();
  const auto* rows = static_cast<const char*>(address(from));
  auto* const out = static_cast<char*>(mutable_address(to));
  in_parts(count, count * bytes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* row = out + target_of(i) * bytes;
      if (rows) {
        std::memcpy(row, rows + source_of(i) * bytes, bytes);
      } else {
        std::memset(row, 0, bytes);
      }
    }
  });
}

}  // namespace

Tensor Segments::packed(const Tensor& padded) const {
  if (!padded.defined() || whole_) return padded;
  Tensor rows = reused_empty({offsets_.back(), padded.size(-1)}, padded.options());
  move(padded, places_, rows, {});
  return rows;
}

Tensor Segments::padded(const Tensor& packed) const {
  if (!packed.defined() || whole_) return packed;
  Tensor padded = in_huge_pages(at::empty({T_, B_, packed.size(-1)}, packed.options()));
  put_padded(packed, padded);
  return padded;
}

void Segments::put_padded(const Tensor& packed, const Tensor& padded) const {
  move(packed, {}, padded, places_);
  std::vector<int64_t> rest;
  for (int64_t t = 0; t < T_; ++t) {
    for (int64_t b = 0; b < B_; ++b) {
      if (t >= ends_[b]) rest.push_back(t * B_ + b);
    }
  }
  move({}, {}, padded, rest);
}

std::vector<uint8_t> Segments::cuts(const Tensor& resets, int64_t direction) const {
  const bool* const bits = resets.const_data_ptr<bool>();
  std::vector<uint8_t> all(offsets_.back());
  for (int64_t t = 0; t < steps(); ++t) {
    for (int64_t n = offsets_[t]; n < offsets_[t + 1]; ++n) {
      const Segment& s = segments_[n - offsets_[t]];
      // Going back, the cut before step t+1 is met between t+1 and t.
      const int64_t at = s.begin + t + direction;
      all[n] = at < ends_[s.row] && bits[at * B_ + s.row];
    }
  }
  return all;
}

Tensor Segments::sorted(const Tensor& states) const {
  if (!states.defined() || states.size(1) == 1) return states;
  return beginnings(states, {}, states.size(0));
}

void Segments::add_sorted(const Tensor& slope, const Tensor& d_states) const {
  if (!d_states.defined()) return;
  std::vector<int64_t> to;
  for (int64_t d = 0; d < slope.size(0); ++d) {
    for (int64_t i = 0; i < size(); ++i) to.push_back(d_states.size(1) == 1 ? d : given_row(d, i));
  }
  move(slope, {}, d_states, to, Move::kAdd);
}

Tensor Segments::beginnings(const Tensor& given, const Tensor& reset, int64_t D) const {
  if (!given.defined() && !reset.defined()) return {};
  const Tensor& like = given.defined() ? given : reset;
  Tensor begin = at::empty({D, size(), like.size(2)}, like.options());
  Moves opening, restarting;
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t i = 0; i < size(); ++i) {
      (opens(segments_[i], d) ? opening : restarting).add(given_row(d, i), d * size() + i);
    }
  }
  if (reset.defined() && reset.size(1) == 1) {
    for (size_t i = 0; i < restarting.source.size(); ++i) restarting.source[i] /= B_;
  }
  move(given, opening.source, begin, opening.target);
  move(reset, restarting.source, begin, restarting.target);
  return begin;
}

void Segments::add_beginnings(const Tensor& slope, const Tensor& d_given,
                              const Tensor& d_reset) const {
  Moves opening, restarting;
  const int64_t D = slope.size(0);
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t i = 0; i < size(); ++i) {
      (opens(segments_[i], d) ? opening : restarting).add(d * size() + i, given_row(d, i));
    }
  }
  if (d_given.defined()) move(slope, opening.source, d_given, opening.target);
  if (!d_reset.defined()) return;
  if (d_reset.size(1) == 1) {
    for (int64_t& row : restarting.target) row /= B_;
  }
  move(slope, restarting.source, d_reset, restarting.target, Move::kAdd);
}

Tensor Segments::endings(const Tensor& ends, const Tensor& given) const {
  const int64_t D = ends.size(0);
  Tensor all = at::empty({D, B_, ends.size(2)}, ends.options());
  Moves closing, without;
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t i = 0; i < size(); ++i) {
      if (closes(segments_[i], d)) closing.add(d * size() + i, given_row(d, i));
    }
    for (int64_t b = 0; b < B_; ++b) {
      if (ends_[b] == 0) without.add(d * B_ + b, d * B_ + b);
    }
  }
  move(ends, closing.source, all, closing.target);
  move(given, without.source, all, without.target);
  return all;
}

Tensor Segments::spread_endings(const Tensor& slope, const Tensor& d_given) const {
  if (!slope.defined()) return {};
  const int64_t D = slope.size(0);
  Tensor ends = at::zeros({D, size(), slope.size(2)}, slope.options());
  Moves closing, without;
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t i = 0; i < size(); ++i) {
      if (closes(segments_[i], d)) closing.add(given_row(d, i), d * size() + i);
    }
    for (int64_t b = 0; b < B_; ++b) {
      if (ends_[b] == 0) without.add(d * B_ + b, d * B_ + b);
    }
  }
  move(slope, closing.source, ends, closing.target);
  if (d_given.defined()) move(slope, without.source, d_given, without.target);
  return ends;
}

}  // namespace fusedrnn::ops

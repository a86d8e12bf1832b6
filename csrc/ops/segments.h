// Batch rows that end early, or whose state is cut, as packed rows: what lies between two cuts is a
// sequence of its own. Kernels so see the packed rows that they know, all of them at once, and none
// of a row's padding. This file is the way there and back: where the rows lie in padded tensors,
// and whose states they begin and end with.
#pragma once

#include <vector>

#include "ops/operands.h"

namespace fusedrnn::ops {

class Segments {
 public:
  // Of `lengths` [B], null: all T; and `resets` [T, B], null: none.
  Segments(int64_t T, int64_t B, const int64_t* lengths, const bool* resets);

  // Every row goes from the first step to the last: then nothing has to be moved. Its state may be
  // cut before the first step nevertheless.
  bool whole() const { return whole_; }
  bool empty() const { return segments_.empty(); }
  // Nothing is cut at all.
  bool none() const { return whole_ && !restarts_; }

  int64_t steps() const { return int64_t(offsets_.size()) - 1; }
  int64_t size() const { return int64_t(segments_.size()); }  // S
  const std::vector<int64_t>& offsets() const { return offsets_; }

  // [T, B, *] as packed rows [N, *], and back, with zeros where there is no row.
  Tensor packed(const Tensor& padded) const;
  Tensor padded(const Tensor& packed) const;
  void put_padded(const Tensor& packed, const Tensor& padded) const;

  // For each packed row, whether `resets` [T, B] cut the state that a direction comes to it with.
  std::vector<uint8_t> cuts(const Tensor& resets, int64_t direction) const;
  // Rows of `states` [D, B or 1, *] in the order of segments, one for all left as it is; and the
  // gradient of that, added up.
  Tensor sorted(const Tensor& states) const;
  void add_sorted(const Tensor& slope, const Tensor& d_states) const;

  // [D, S, *], what each segment begins with: a row of `given` [D, B, *], or of `reset` [D, B or 1,
  // *] where a cut is before it. Undefined tensors are zeros, and so is the result of two of them.
  Tensor beginnings(const Tensor& given, const Tensor& reset, int64_t D) const;
  // The gradient of `given` and that of `reset`, from that of the beginnings; what there is no
  // tensor for is left out.
  void add_beginnings(const Tensor& slope, const Tensor& d_given, const Tensor& d_reset) const;
  // [D, B, *], what each row ends with: of `ends` [D, S, *] its last segment's, or, where it has no
  // step, what it was given.
  Tensor endings(const Tensor& ends, const Tensor& given) const;
  // The gradient of `ends`. That of `given`, if it is there, is set for rows without steps.
  Tensor spread_endings(const Tensor& slope, const Tensor& d_given) const;

 private:
  // A piece of a batch row that no cut goes through.
  struct Segment {
    int64_t row, begin, length;
    bool first, last;  // of its row
    bool restarts;     // a cut is before it
  };
  // Whether a segment begins with what was given, and whether its end is its row's.
  static bool opens(const Segment& s, int64_t direction) {
    return direction == 0 ? s.first && !s.restarts : s.last;
  }
  static bool closes(const Segment& s, int64_t direction) {
    return direction == 0 ? s.last : s.first;
  }
  // The row of tensors [D, B, *] that segment i is of.
  int64_t given_row(int64_t direction, int64_t i) const {
    return direction * B_ + segments_[i].row;
  }
  void cut(const bool* resets);
  void sort();
  void place();

  int64_t T_, B_;
  std::vector<int64_t> ends_;  // [B], lengths
  bool whole_ = true, restarts_ = false;
  std::vector<Segment> segments_;  // longest first
  std::vector<int64_t> offsets_;   // [steps + 1]
  std::vector<int64_t> places_;    // [N], in [T*B]: where a packed row lies
};

#ifdef FUSEDRNN_WITH_CUDA
// Indices on a CUDA device, for the current stream there (csrc/ops/cuda/offsets.cpp).
Tensor index_on_device(const std::vector<int64_t>& index, c10::Device device);
#endif

}  // namespace fusedrnn::ops

// What the persistent kernels share: how a warp's lanes split the sums of W_hh products and end up
// with a few each, where a thread's weights lie, and which rows a time step has.
#pragma once

#include <type_traits>

#include "cuda/primitives.cuh"
#include "cuda/tiles.h"

namespace fusedrnn::cuda {

constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }
constexpr int smaller(int a, int b) { return a < b ? a : b; }

// How the lanes of a warp add up their parts of the sums. Each of `kLanes` lanes holds a part of
// kPairs * kGates sums, ordered [pair][gate]; a pair is a hidden unit and a batch row. At each
// exchange two lanes give each other half of what they hold, so that a lane ends with a few whole
// sums: first the pairs are halved, then the gates if there are four. When nothing is left to
// halve, lanes exchange all and hold copies. The lanes of a sum lie 32 / kLanes apart, so that
// lanes side by side read the same h, which is a broadcast.
template <int kPairs, int kGates, int kLanes>
struct LaneSplit {
  static constexpr int kStride = 32 / kLanes;
  static constexpr int kStages = log2_of(kLanes);
  static constexpr int kPairStages = smaller(kStages, log2_of(kPairs));
  static constexpr int kGateStages = kGates == 4 ? smaller(kStages - kPairStages, 2) : 0;
  static constexpr int kHalvings = kPairStages + kGateStages;
  static constexpr int kStates = kPairs >> kPairStages;     // pairs left to a lane
  static constexpr int kLaneGates = kGates >> kGateStages;  // gates of each left to it
  static constexpr int kCopies = kLanes >> kPairStages;     // lanes with the same pairs
  static constexpr int kValues = kStates * kLaneGates;

  int lane;   // among the lanes of a sum
  int group;  // which sums
  int first_pair, first_gate;
  int copy;         // 0: this lane is the one that stores its states
  bool owns_gates;  // this lane is the one that stores its gates

  FUSEDRNN_DEVICE explicit LaneSplit(int thread)
      : lane(thread % 32 / kStride), group(thread / 32 * kStride + thread % kStride) {
    first_pair = first_gate = 0;
#pragma unroll
    for (int s = 0; s < kPairStages; ++s) first_pair += lane >> s & 1 ? kPairs >> (s + 1) : 0;
#pragma unroll
    for (int s = 0; s < kGateStages; ++s)
      first_gate += lane >> (kPairStages + s) & 1 ? kGates >> (s + 1) : 0;
    copy = lane >> kPairStages;
    owns_gates = lane >> kHalvings == 0;
  }

  template <int kStage = 0, int kCount>
  FUSEDRNN_DEVICE void reduce(const float (&parts)[kCount], float (&sums)[kValues]) const {
    if constexpr (kStage == kStages) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) sums[i] = parts[i];
    } else if constexpr (kStage < kHalvings) {
      constexpr int kHalf = kCount / 2;
      float kept[kHalf];
      const bool upper = lane >> kStage & 1;
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const float own = upper ? parts[i + kHalf] : parts[i];
        const float other = upper ? parts[i] : parts[i + kHalf];
        kept[i] = own + shuffle_xor(other, kStride << kStage);
      }
      reduce<kStage + 1>(kept, sums);
    } else {
      float all[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) all[i] = parts[i] + shuffle_xor(parts[i], kStride << kStage);
      reduce<kStage + 1>(all, sums);
    }
  }

  // All gates of a pair from the lanes that hold some of them.
  FUSEDRNN_DEVICE void gather(const float (&own)[kLaneGates], float (&all)[kGates]) const {
    if constexpr (kLaneGates == kGates) {
#pragma unroll
      for (int g = 0; g < kGates; ++g) all[g] = own[g];
    } else {
      float half[2];
      if constexpr (kLaneGates == 1) {
        const float other = shuffle_xor(own[0], kStride << (kPairStages + 1));
        const bool odd = first_gate & 1;
        half[0] = odd ? other : own[0];
        half[1] = odd ? own[0] : other;
      } else {
        half[0] = own[0];
        half[1] = own[1];
      }
      const float low = shuffle_xor(half[0], kStride << kPairStages);
      const float high = shuffle_xor(half[1], kStride << kPairStages);
      const bool last = first_gate & 2;
      all[0] = last ? low : half[0];
      all[1] = last ? high : half[1];
      all[2] = last ? half[0] : low;
      all[3] = last ? half[1] : high;
    }
  }
};

// What the four lanes own of a row's units from a multiple of four on, by unit, given to all four:
// they are in one warp. kUnits are those of a group, of which a lane has one.
template <int kUnits, int kStride>
struct FourUnits {
  // The lane that differs in one bit of the unit: within a group its bits count down from the first
  // stage of the reduction, above they are the group's.
  static constexpr int kBits = log2_of(kUnits);
  static constexpr int kFirst = kBits > 0 ? kStride << kBits >> 1 : 1;
  static constexpr int kSecond = kBits > 1 ? kStride << kBits >> 2 : 2 >> kBits;
  static_assert(kBits > 1 || kSecond < kStride);

  static FUSEDRNN_DEVICE float4 gather(float own, int unit) {
    const bool odd = unit & 1, last = unit & 2;
    const float other = shuffle_xor(own, kFirst);
    const float low = odd ? other : own, high = odd ? own : other;
    const float other_low = shuffle_xor(low, kSecond), other_high = shuffle_xor(high, kSecond);
    return make_float4(last ? other_low : low, last ? other_high : high, last ? low : other_low,
                       last ? high : other_high);
  }
};

// A thread's weights, as float4: kShared of them lie in shared memory, the others in registers. The
// shared ones are spread evenly among the others, kGrain at a time, so that their loads hide behind
// multiply-adds.
//
// For that the whole product is unrolled: a time step of 4 batch rows is 18 to 23 KB of code. We
// tried a loop over the shared ones instead, which then come last (sm_90, simulated). With one
// column a turn, the next one loaded ahead, the code is 14 to 17 KB, but a step takes up to 12 %
// longer, and in half of the kernels more than 5 %: eight warps read such a column in 320 cycles
// and multiply it in 256. With two columns a turn the code is 19 KB, a step takes between 9 % less
// and 4 % more, and an LSTM of H=128 spills, forward. With an instruction cache of 16 KB simulated
// too, an LSTM gains more than 3 % by either loop only if the cache slows the unrolled code by over
// 30 %; a profile would show that as the stall no_instruction.
template <int kQuads, int kShared, int kThreads, int kGrain>
class Weights {
 public:
  static_assert(kQuads % kGrain == 0 && kShared % kGrain == 0);

  FUSEDRNN_DEVICE Weights(float4* shared, int thread) : shared_(shared + thread) {}

  static constexpr FUSEDRNN_DEVICE bool is_shared(int q) {
    return before(q / kGrain + 1) != before(q / kGrain);
  }
  FUSEDRNN_DEVICE void set(int q, float4 weight) {
    if (is_shared(q)) {
      shared_[shared_index(q) * kThreads] = weight;
    } else {
      kept_[q - before(q / kGrain) * kGrain] = weight;
    }
  }
  FUSEDRNN_DEVICE float4 get(int q) const {
    return is_shared(q) ? shared_[shared_index(q) * kThreads]
                        : kept_[q - before(q / kGrain) * kGrain];
  }
  // Calls load(q) for the shared ones, then for the others. All in one go, those on their way to
  // shared memory would take registers from those that stay there, and spill.
  template <class Load>
  FUSEDRNN_DEVICE void fill(Load load) {
#pragma unroll
    for (int q = 0; q < kQuads; q += kGrain)
      if (is_shared(q)) load(q);
    if (kShared > 0) block_sync();
#pragma unroll
    for (int q = 0; q < kQuads; q += kGrain)
      if (!is_shared(q)) load(q);
  }
  // Waits for the loads: left in flight, they would share a scoreboard with the loads ahead in the
  // time loop, and every step would wait for those. `one` is 1, which the compiler must not know.
  FUSEDRNN_DEVICE void settle(float one) {
#pragma unroll
    for (int i = 0; i < kQuads - kShared; ++i) {
      kept_[i].x *= one;
      kept_[i].y *= one;
      kept_[i].z *= one;
      kept_[i].w *= one;
    }
  }

 private:
  static constexpr FUSEDRNN_DEVICE int before(int grain) {
    return grain * (kShared / kGrain) / (kQuads / kGrain);
  }
  static constexpr FUSEDRNN_DEVICE int shared_index(int q) {
    return before(q / kGrain) * kGrain + q % kGrain;
  }

  float4* shared_;
  float4 kept_[kQuads - kShared > 0 ? kQuads - kShared : 1];
};

FUSEDRNN_DEVICE float dot(float4 a, float4 b, float sum) {
  sum = fmaf(a.x, b.x, sum);
  sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum);
  return fmaf(a.w, b.w, sum);
}

// Four elements from row `row`, column `column` on, of a matrix of `n` columns; zeros past them or
// where not `inside`.
template <bool kAligned>
FUSEDRNN_DEVICE float4 load_quad(const float* matrix, int64_t row, int column, int n, bool inside) {
  const float* from = matrix + row * n + column;
  if constexpr (kAligned) {
    return load_if(inside && column < n, reinterpret_cast<const float4*>(from));
  } else {
    return make_float4(
        load_if(inside && column < n, from), load_if(inside && column + 1 < n, from + 1),
        load_if(inside && column + 2 < n, from + 2), load_if(inside && column + 3 < n, from + 3));
  }
}
// Whether float4 loads are allowed: rows then start on 16 bytes too.
FUSEDRNN_DEVICE bool is_aligned(const float* matrix, int n) {
  return n % 4 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
}

// What model/rows.h says of a step, as the persistent kernels need it: where a batch row is among
// the N rows of x and y at each step, counted in the order in which steps are taken; kNoRow where
// it takes no part: past its length, past the last step, or padding. A step's range is asked for
// two or three steps ahead, so that packed and unpacked batches run at the same speed.
//
// Not by Rows itself, for three reasons. A row is 32 bits here: a thread keeps two or three of them
// for each of its states over the whole loop, and in 64 bits they would be twice the registers,
// where every one left over holds weights. Steps past the last are asked for, and Rows would read
// offsets that are not there. And each load has to stay where it is written, in a register of each
// thread (load_or), not in one of the warp, for which the step would wait.
constexpr int kNoRow = -1;

struct RowRange {
  int first, end;

  FUSEDRNN_DEVICE int row(int batch_row) const {
    return batch_row < end - first ? first + batch_row : kNoRow;
  }
};

struct Steps {
  const int64_t* offsets;
  int T, B;
  bool descending;

  // Rows of all steps together.
  FUSEDRNN_DEVICE int rows() const { return load_or(offsets, offsets + T, T * B); }

  FUSEDRNN_DEVICE RowRange operator()(int step) const {
    const bool is_step = step < T, packed = is_step && offsets;
    const int t = descending ? T - 1 - step : step;
    // Added as numbers: past the last step this may lie before `offsets`, and those may be null.
    const uintptr_t from = reinterpret_cast<uintptr_t>(offsets) + uintptr_t(intptr_t(t) * 8);
    return {load_or(packed, reinterpret_cast<const int64_t*>(from), is_step ? t * B : 0),
            load_or(packed, reinterpret_cast<const int64_t*>(from + 8), is_step ? t * B + B : 0)};
  }
};
constexpr int kPadding = 0x7fffffff;  // a batch row that no step has

// A guess at a batch row's row three steps after `next`, from its row in the step before `next`. It
// is right where all steps between have as many rows. It is always a row of the matrix, or kNoRow.
FUSEDRNN_DEVICE int row_ahead(int before, int next, int rows) {
  const uint32_t row = 4u * uint32_t(next) - 3u * uint32_t(before);
  return row < uint32_t(rows) ? int(row) : kNoRow;
}

// Row `row` of a matrix whose rows lie `stride` elements apart. Counted in bytes and unsigned, this
// is one wide multiply-add; otherwise the compiler scales afterwards.
template <class T>
FUSEDRNN_DEVICE T* at(T* matrix, int row, int stride) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  const uint32_t bytes = uint32_t(stride) * uint32_t(sizeof(T));
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(matrix) + uint64_t(uint32_t(row)) * bytes);
}

}  // namespace fusedrnn::cuda

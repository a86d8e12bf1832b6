// A recurrence to put to the kernels: sizes, lengths and optional tensors drawn by chance, the same
// on every run, what comes out by the reference, and memory of exactly the size the contract
// states.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cuda/params.h"
#include "reference.h"

namespace fusedrnn::cuda {

// Elements beside a buffer that must stay as they are; AddressSanitizer watches what is beside.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kBeside = 0;
#else
constexpr int64_t kBeside = 64;
#endif

// Rows of `columns` elements, `stride` apart, the first `skip` elements in: nan where nothing was
// put.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t rows, int64_t columns, int64_t stride, int64_t skip)
      : rows_(rows),
        columns_(columns),
        stride_(stride),
        skip_(skip),
        elements_(size_t(rows * stride + skip + 2 * kBeside), std::numeric_limits<T>::quiet_NaN()) {
  }
  Buffer(int64_t rows, int64_t columns, int64_t skip) : Buffer(rows, columns, columns, skip) {}

  T* data() { return elements_.empty() ? nullptr : elements_.data() + kBeside + skip_; }
  T& operator()(int64_t row, int64_t column) { return data()[row * stride_ + column]; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }

  Buffer& put(const Doubles& values) {
    for (size_t i = 0; i < values.size(); ++i)
      (*this)(int64_t(i) / columns_, int64_t(i) % columns_) = T(values[i]);
    return *this;
  }

  // Where it first departs from `want`, or is written where nothing was asked for, from column
  // `first` on; "" if nowhere. Other columns are for other directions.
  std::string difference(const char* name, const Doubles& want) {
    double scale = 1;
    for (const double x : want) scale = std::max(scale, std::abs(x));
    const double tolerance = (sizeof(T) == 4 ? 4e-6 : 1e-13) * scale;
    for (size_t i = 0; i < want.size(); ++i) {
      const int64_t row = int64_t(i) / columns_, column = int64_t(i) % columns_;
      const double got = (*this)(row, column);
      if (std::abs(got - want[i]) <= tolerance) continue;
      return std::string(name) + "[" + std::to_string(row) + ", " + std::to_string(column) +
             "] is " + std::to_string(got) + ", not " + std::to_string(want[i]);
    }
    return untouched_around(name);
  }

  std::string untouched_around(const char* name) const {
    const int64_t size = int64_t(elements_.size());
    for (int64_t i = 0; i < size; ++i) {
      const int64_t from_first = i - kBeside - skip_;
      const bool own =
          from_first >= 0 && from_first < rows_ * stride_ && from_first % stride_ < columns_;
      if (own || std::isnan(elements_[size_t(i)])) continue;
      return std::string(name) + " is written at element " + std::to_string(from_first) +
             ", not its own";
    }
    return "";
  }

 private:
  int64_t rows_ = 0, columns_ = 0, stride_ = 0, skip_ = 0;
  std::vector<T> elements_;
};

struct Drawn {
  std::string name;
  Problem problem;
  int directions;
  std::vector<int64_t> offsets;  // empty: every step has B rows
  int64_t ldy, lddy, ldc, lddc;
  int64_t cut;   // the step at which persistent kernels are started anew; 0: not at all
  int64_t skip;  // elements by which every tensor is off its alignment
  bool wants_dh0, wants_dc0;
  bool wants_c;             // in inference too
  Recurrence direction[2];  // with the reference's results
};

// The offsets of a packed batch, whose steps have fewer and fewer rows.
inline std::vector<int64_t> draw_offsets(int64_t T, int64_t B, std::mt19937& random) {
  std::vector<int64_t> offsets = {0};
  int64_t rows = B;
  for (int64_t t = 0; t < T; ++t) {
    offsets.push_back(offsets.back() + rows);
    if (random() % 2 == 0) rows -= int64_t(random() % unsigned(rows));
  }
  return offsets;
}

inline std::string name_of(const Drawn& d) {
  const Problem& p = d.problem;
  char name[96];
  std::snprintf(name, sizeof name, "%s T%d B%d H%d D%d cut %d%s%s", spec(p.cell).name, int(p.T),
                int(p.B), int(p.H), d.directions, int(d.cut), p.packed ? " packed" : "",
                d.skip ? " unaligned" : "");
  return name;
}

// `rows` is the number of batch rows a kernel takes at once: of interest is one more or less.
inline Drawn draw(Cell cell, int64_t T, int64_t B, int64_t H, unsigned seed) {
  std::mt19937 random(seed);
  const auto chance = [&](unsigned of) { return random() % of == 0; };
  Drawn d;
  d.problem = {.cell = cell,
               .dtypes = all_of(DType::kFloat32),
               .T = T,
               .B = B,
               .I = 1,
               .H = H,
               .P = H,
               .projected = false,
               .training = true,
               .reverse = false,
               .packed = false,
               .offsets = nullptr};
  d.directions = chance(2) ? 2 : 1;
  d.skip = chance(4) ? 1 : 0;
  d.ldy = d.directions * H + (chance(2) ? 3 : 0);
  d.lddy = d.directions * H + (chance(2) ? 5 : 0);
  d.ldc = H + (chance(2) ? 3 : 0);
  d.lddc = H + (chance(2) ? 7 : 0);
  d.cut = chance(2) ? int64_t(random() % unsigned(T)) : 0;
  d.problem.packed = chance(2);
  if (d.problem.packed) {
    d.offsets = draw_offsets(T, B, random);
    d.problem.offsets = d.offsets.data();
  }
  const bool biased = !chance(4), has_h0 = !chance(4), has_c0 = !chance(4);
  const bool has_dy = !chance(4), has_dh_n = !chance(4), has_dc_n = !chance(4);
  d.wants_dh0 = !chance(4);
  d.wants_dc0 = !chance(4);
  d.wants_c = chance(2);
  const bool has_dc = chance(2);

  const int64_t N = d.problem.rows().total(), G = gates_of(cell);
  const auto fill = [&](Doubles& to, bool present, int64_t count, float bound) {
    std::uniform_real_distribution<float> uniform(-bound, bound);
    to.resize(present ? size_t(count) : 0);
    for (double& x : to) x = uniform(random);
  };
  for (int i = 0; i < d.directions; ++i) {
    Recurrence& r = d.direction[i];
    const bool has_c = spec(cell).has_c;
    const float weight = 2 / std::sqrt(float(H));
    fill(r.x, true, N * G * H, 1.5f);
    fill(r.w_hh, true, G * H * H, weight);
    fill(r.b_hh, biased, G * H, 0.5f);
    fill(r.h0, has_h0, B * H, 1);
    fill(r.c0, has_c0 && has_c, B * H, 1);
    fill(r.dy, has_dy, N * H, 1);
    fill(r.dh_n, has_dh_n, B * H, 1);
    fill(r.dc_n, has_dc_n && has_c, B * H, 1);
    fill(r.dc, has_dc && has_c, N * H, 1);
    recurrence(d.problem, i == 1, r);
  }

  d.name = name_of(d);
  return d;
}

}  // namespace fusedrnn::cuda

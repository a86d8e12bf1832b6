// The products of int8 by every table that this machine can run, and by AVX-VNNI's and AVX-512's
// with their instructions emulated: beside sums in integers, and bit by bit where the machine has
// FMA. Blocks of memory end where their contents do, for AddressSanitizer.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma")
#define FUSEDRNN_ISA emulated
#define FUSEDRNN_NARROW_NAME "avx_vnni, emulated"
#define FUSEDRNN_VECTOR_BYTES 32
#define FUSEDRNN_KEEP(x)
#define FUSEDRNN_DPBUSD(sums, a, w) by_lane(sums, a, w)
#include "cpu/isa/narrow_int8_rows.h"
namespace fusedrnn::cpu::emulated {
namespace {
inline Words by_lane(Words sums, Words a, Words w) {
  for (int lane = 0; lane < kLanes<float>; ++lane) {
    for (int i = 0; i < 4; ++i) {
      sums[lane] += int(uint8_t(a[lane] >> 8 * i)) * int(int8_t(w[lane] >> 8 * i));
    }
  }
  return sums;
}
}  // namespace
}  // namespace fusedrnn::cpu::emulated
#include "cpu/isa/narrow_vnni.h"
FUSEDRNN_END_TARGET

FUSEDRNN_NARROW_TABLE(emulated_avx512int8)
#endif

namespace {

using namespace fusedrnn::cpu;

int checked = 0, failures = 0;

std::vector<const Narrow*> tables() {
  std::vector<const Narrow*> all{&int8::table()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    all.push_back(&avx2int8::table());
    all.push_back(&emulated::table());
    all.push_back(&emulated_avx512int8::table());
    if (has_avx_vnni()) all.push_back(&avxvnni::table());
  }
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    all.push_back(&avx512int8::table());
    if (__builtin_cpu_supports("avx512vnni")) all.push_back(&avx512vnni::table());
  }
#endif
  return all;
}

void fail(const Narrow& table, const char* what, long row, long at) {
  if (++failures < 20) std::printf("%s: %s, row %ld, %ld\n", table.name, what, row, at);
}

struct Case {
  int vectors;
  int64_t rows, n;
  int tail;
  bool extreme;  // the numbers whose products vpmaddubsw would saturate
};

// Random rows, rounded by a table.
struct Rows {
  const Narrow& table;
  int64_t n, stride;
  std::vector<float> x, scales;
  std::vector<uint32_t> words;

  Rows(const Narrow& by, const Case& of, std::mt19937& random)
      : table(by),
        n(of.n),
        stride(row_words(by, of.n)),
        x(of.rows * of.n),
        scales(of.rows),
        words(of.rows * stride) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < int64_t(x.size()); ++i) {
      x[i] = !of.extreme ? normal(random) : i / n % 2 ? -1.0f : 1.0f;
    }
    table.narrow({x.data(), n, of.rows, n, words.data(), stride, scales.data()});
  }

  int rounded(int64_t r, int64_t k) const {
    const auto* row = reinterpret_cast<const uint8_t*>(words.data() + r * stride);
    if (!table.signs) return int(row[k]) - kZero;
    const int64_t at = k / 4 * 8 + k % 4;
    return int(row[at]) * (row[at + 4] ? -1 : 1);
  }
  void check(int64_t r) const {
    float most = 0;
    for (int64_t k = 0; k < n; ++k) most = std::fmax(most, std::fabs(x[r * n + k]));
    if (scales[r] != most / 127) fail(table, "scale", r, 0);
    for (int64_t k = 0; k < n; ++k, ++checked) {
      const float exact = x[r * n + k] / most * 127;
      if (std::fabs(float(rounded(r, k)) - exact) > 0.5001f) fail(table, "rounded", r, k);
    }
  }
};

// Multiplies random rows by random columns.
void run(const Narrow& table, const Case& of, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> any(-127, 127);
  const int64_t depth = words_of(table.dtype, of.n), W = table.lanes, width = of.vectors * W;
  const Rows rows(table, of, random);
  for (int64_t r = 0; r < of.rows; ++r) rows.check(r);
  std::vector<float> w_scale(width), init(width);
  std::vector<uint32_t> w(depth * width);
  std::vector<int32_t> offset(width);
  const auto weight = [&](int64_t k, int64_t i) -> int8_t& {
    return reinterpret_cast<int8_t*>(&w[k / 4 * width + i])[k % 4];
  };
  for (int64_t i = 0; i < width; ++i) {
    init[i] = normal(random);
    w_scale[i] = 0.02f * float(i + 1);
    for (int64_t k = 0; k < of.n; ++k) {
      weight(k, i) = int8_t(of.extreme ? (i % 2 ? 127 : -127) : any(random));
      offset[i] += kZero * weight(k, i);
    }
  }
  std::vector<float> c((of.rows - 1) * width + (of.vectors - 1) * W + of.tail, std::nanf(""));
  init.resize((of.vectors - 1) * W + of.tail);
  table.product[of.vectors - 1]({.a = rows.words.data(),
                                 .a_row = rows.stride,
                                 .depth = depth,
                                 .w = w.data(),
                                 .init = init.data(),
                                 .init_row = 0,
                                 .c = c.data(),
                                 .c_row = width,
                                 .rows = of.rows,
                                 .tail = of.tail,
                                 .at = {0, W, 2 * W, 3 * W},
                                 .a_scale = rows.scales.data(),
                                 .w_scale = w_scale.data(),
                                 .w_offset = offset.data()});
  for (int64_t r = 0; r < of.rows; ++r) {
    for (int64_t i = 0; i < int64_t(init.size()); ++i, ++checked) {
      int64_t sum = 0;
      for (int64_t k = 0; k < of.n; ++k) sum += int64_t(rows.rounded(r, k)) * weight(k, i);
      const float scale = rows.scales[r] * w_scale[i], got = c[r * width + i];
      const float expected = std::fmaf(float(sum), scale, init[i]);
      const bool fused = table.lanes > 4;  // the others round a product by itself
      const float slack = fused ? 0 : 1e-6f * (std::fabs(float(sum) * scale) + 1);
      if (!(std::fabs(got - expected) <= slack)) fail(table, "product", r, i);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const Narrow* table : tables()) {
    for (int vectors = 1; vectors <= 4; ++vectors) {
      for (int64_t rows : {1, 2, 3, 5, 8, 13}) {
        for (int64_t n : {1, 4, 7, 64, 129}) {
          for (int tail : {table->lanes, 1}) {
            for (bool extreme : {false, true})
              run(*table, {vectors, rows, n, tail, extreme}, random);
          }
        }
      }
    }
  }
  std::printf("%d results, %d failures\n", checked, failures);
  return failures > 0;
}

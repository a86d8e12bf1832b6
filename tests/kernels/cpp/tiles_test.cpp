// The products by tile registers, of which each is emulated, beside sums in float64 and in
// integers. Blocks of memory end where their contents do, for AddressSanitizer.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/isa/variants.h"
#include "emulated_tiles.h"

FUSEDRNN_BEGIN_TARGET("avx2,fma")
#include "by_lane_avx512.h"

#define FUSEDRNN_ISA tiles
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x)
#define FUSEDRNN_BY_LANE
#include "cpu/isa/narrow_amx_formats.h"

namespace fusedrnn::cpu::tiles {
namespace {

constexpr int W = 16;
int checked = 0, failures = 0;

struct Case {
  int vectors;
  int64_t rows, depth, blocks;
  int tail;
  enum Init { kNone, kOfEachRow, kOfAllRows, kInPlace } init;
  const char* name() const {
    static char text[200];
    std::snprintf(text, sizeof text,
                  "%d vectors, %ld rows, %ld words, %ld blocks, tail %d, init %d", vectors,
                  long(rows), long(depth), long(blocks), tail, int(init));
    return text;
  }
};

// Random words and what a product of them is, number by number.
class Operands {
 public:
  Operands(const Case& of, DType dtype, std::mt19937& random)
      : of_(of), dtype_(dtype), numbers_(int(per_word(dtype))) {
    const int64_t words = of.depth * of.blocks, width = int64_t(of.vectors) * W;
    std::uniform_int_distribution<uint32_t> any;
    std::normal_distribution<float> normal;
    const auto word = [&] {
      const uint32_t bits = any(random);
      // The exponents of numbers around 1.
      return dtype == DType::kInt8 ? bits : (bits & 0x80ff80ff) | 0x3f003f00;
    };
    a.resize(of.rows * words + (of.blocks > 1 ? 3 : 0));
    w.resize(words * width);
    for (uint32_t& x : a) x = word();
    for (uint32_t& x : w) x = word();
    c.resize((of.rows - 1) * width + (of.vectors - 1) * W + of.tail);
    init.resize(of.init == Case::kOfAllRows ? (of.vectors - 1) * W + of.tail : c.size());
    for (float& x : init) x = normal(random);
    for (int64_t r = 0; r < of.rows; ++r) a_scale.push_back(0.01f * float(r + 1));
    for (int64_t i = 0; i < width; ++i) {
      w_scale.push_back(0.02f * float(i + 1));
      int sum = 0;
      for (int64_t k = 0; k < words * numbers_; ++k)
        sum += int(number(w[k / numbers_ * width + i], k));
      w_offset.push_back(kZero * sum);
    }
    c = init;
    c.resize((of.rows - 1) * width + (of.vectors - 1) * W + of.tail, std::nanf(""));
  }

  NarrowProduct product() {
    const int64_t width = int64_t(of_.vectors) * W;
    const float* from = of_.init == Case::kNone      ? nullptr
                        : of_.init == Case::kInPlace ? c.data()
                                                     : init.data();
    return {.a = a.data(),
            .a_row = of_.depth,
            .a_block = of_.depth * of_.rows,
            .blocks = of_.blocks,
            .depth = of_.depth,
            .w = w.data(),
            .init = from,
            .init_row = of_.init == Case::kOfAllRows ? 0 : width,
            .c = c.data(),
            .c_row = width,
            .rows = of_.rows,
            .tail = of_.tail,
            .at = {0, W, 2 * W, 3 * W},
            .a_scale = a_scale.data(),
            .w_scale = w_scale.data(),
            .w_offset = w_offset.data()};
  }

  void compare() {
    const int64_t width = int64_t(of_.vectors) * W;
    for (int64_t r = 0; r < of_.rows; ++r) {
      for (int64_t i = 0; i < (of_.vectors - 1) * W + of_.tail; ++i, ++checked) {
        const float begin = of_.init == Case::kNone
                                ? 0.0f
                                : init[(of_.init == Case::kOfAllRows ? 0 : r * width) + i];
        double sum = 0, size = std::fabs(begin);
        for (int64_t b = 0; b < of_.blocks; ++b) {
          for (int64_t k = 0; k < of_.depth * numbers_; ++k) {
            const uint32_t x = a[(b * of_.rows + r) * of_.depth + k / numbers_];
            const uint32_t y = w[(b * of_.depth + k / numbers_) * width + i];
            const double each =
                (dtype_ == DType::kInt8 ? number(x ^ 0x80808080, k) : number(x, k)) * number(y, k);
            sum += each;
            size += std::fabs(each);
          }
        }
        const float got = c[r * width + i];
        bool right;
        if (dtype_ == DType::kInt8) {
          right = got == __builtin_fmaf(float(sum), a_scale[r] * w_scale[i], begin);
        } else {
          right = std::fabs(got - (sum + begin)) <= 1e-6 * size;
        }
        if (!right && ++failures < 20)
          std::printf("%s: row %ld lane %ld\n", of_.name(), long(r), long(i));
      }
    }
  }

 private:
  // The k-th number of its word.
  double number(uint32_t word, int64_t k) const {
    if (dtype_ == DType::kInt8) return int8_t(word >> 8 * (k % 4));
    return emulated::upper_half(uint16_t(word >> 16 * (k % 2)));
  }

  const Case of_;
  const DType dtype_;
  const int numbers_;
  std::vector<uint32_t> a, w;
  std::vector<float> c, init, a_scale, w_scale;
  std::vector<int32_t> w_offset;
};

void run(const Case& of, std::mt19937& random) {
  static const Narrow tables[] = {
      tile_table<TilesOfBFloat16<emulated::Tiles>>("bfloat16", DType::kBFloat16, Narrow{}),
      tile_table<TilesOfInt8<emulated::Tiles>>("int8", DType::kInt8, Narrow{})};
  for (const Narrow& table : tables) {
    Operands operands(of, table.dtype, random);
    table.product[of.vectors - 1](operands.product());
    operands.compare();
  }
}

}  // namespace
}  // namespace fusedrnn::cpu::tiles
FUSEDRNN_END_TARGET

int main() {
  using namespace fusedrnn::cpu::tiles;
  std::mt19937 random(1);
  for (int vectors = 1; vectors <= 4; ++vectors) {
    for (int64_t rows : {1, 3, 16, 17, 64, 83}) {
      for (const auto& [depth, blocks] :
           {std::pair(1, 1), {15, 1}, {16, 3}, {24, 3}, {33, 1}, {64, 1}}) {
        const auto init = Case::Init((vectors + rows + depth) % 4);
        for (int tail : {16, 5}) run({vectors, rows, depth, blocks, tail, init}, random);
      }
    }
  }
  std::printf("%d results, %d failures\n", checked, failures);
  return failures > 0;
}

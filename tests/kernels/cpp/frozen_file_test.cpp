// Reads damaged copies of files of frozen layers: each is refused with a reason, or is a layer
// whose weights all lie within memory. Sanitizers watch.
//
//     frozen_file_test COPIES FILE...
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

#include "frozen/file.h"

namespace {

using fusedrnn::DType;
using fusedrnn::frozen::File;
using fusedrnn::frozen::Shape;
using fusedrnn::frozen::Weights;
using Bytes = std::vector<char>;

std::mt19937 chance(0);
size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(chance); }

Bytes damaged(Bytes copy) {
  const size_t header = 8 + size_t(static_cast<unsigned char>(copy[0])) +
                        size_t(static_cast<unsigned char>(copy[1])) * 256;
  if (below(10) == 0) {
    copy.resize(below(copy.size()));
    return copy;
  }
  static const char kOthers[] = "\"\\{}[]:,0129-ex \xff";
  for (size_t left = 1 + below(4); left; --left) {
    const size_t at = below(below(10) ? header : copy.size());
    switch (below(4)) {
      case 0:
        copy[at] = char(copy[at] ^ (1 << below(8)));
        break;
      case 1:
        copy[at] = kOthers[below(sizeof kOthers)];  // the zero too
        break;
      case 2:
        copy[at] = copy[below(copy.size())];
        break;
      case 3:
        copy.erase(copy.begin() + std::ptrdiff_t(at));
        break;
    }
  }
  return copy;
}

// Touches the first and the last byte, which the sanitizer checks.
int touched(const void* from, int64_t bytes) {
  const auto* all = static_cast<const volatile char*>(from);
  return from ? all[0] + all[bytes - 1] : 0;
}

int touched(const File& file) {
  const Shape& s = file.shape;
  const int64_t stored = size_of(s.stored), computed = size_of(s.computed);
  int sum = 0;
  for (size_t i = 0; i < file.weights.size(); ++i) {
    const Weights& w = file.weights[i];
    sum += touched(w.w_ih, s.rows() * s.inputs_of(int64_t(i) / s.D) * stored);
    sum += touched(w.w_hh, s.rows() * s.P * stored);
    for (const float* scale : {w.s_ih, w.s_hh}) sum += touched(scale, s.rows() * 4);
    for (const void* bias : {w.b_ih, w.b_hh}) sum += touched(bias, s.rows() * computed);
    sum += touched(w.w_hr, s.P * s.H * computed);
  }
  return sum;
}

}  // namespace

int main(int argc, char** argv) {
  int refused = 0, whole = 0, sum = 0;
  for (int i = 2; i < argc; ++i) {
    std::ifstream stream(argv[i], std::ios::binary);
    const Bytes bytes{std::istreambuf_iterator<char>(stream), {}};
    sum += touched(fusedrnn::frozen::read(argv[i]));
    for (int copies = std::atoi(argv[1]); copies; --copies) {
      try {
        sum += touched(fusedrnn::frozen::parsed(damaged(bytes)));
        ++whole;
      } catch (const std::runtime_error&) {
        ++refused;
      }
    }
  }
  std::printf("%d refused, %d whole\n", refused, whole);
  return sum == 12345678;  // so that every byte is read
}

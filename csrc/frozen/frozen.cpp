// See frozen.h.
#include "frozen/frozen.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/narrow.h"

namespace fusedrnn::frozen {
namespace {

// int8: so many products of 255 * 127 are summed in int32 at most.
constexpr int64_t kMostInt8 = 65536;

void check(const Shape& s, size_t directions) {
  const auto refuse = [](const std::string& what) {
    throw std::invalid_argument("fusedrnn: " + what);
  };
  if (s.L < 1 || s.D < 1 || s.D > 2 || s.I < 1 || s.H < 1 || s.P < 1) {
    refuse("a frozen stack needs layers, input_size and hidden_size of 1 or more, got " +
           std::to_string(s.L) + ", " + std::to_string(s.I) + " and " + std::to_string(s.H));
  }
  if (int64_t(directions) != s.L * s.D) {
    refuse("weights must be of " + std::to_string(s.L * s.D) + " directions, got " +
           std::to_string(directions));
  }
  const int64_t most = std::max({s.I, s.P, s.D * s.P});
  if (s.stored == DType::kInt8 && most > kMostInt8) {
    refuse("int8 takes rows of at most " + std::to_string(kMostInt8) + " weights, got " +
           std::to_string(most) + ": freeze with another dtype");
  }
}

}  // namespace

Memory aligned(int64_t bytes) {
  void* memory = nullptr;
  const size_t lines = bytes > 0 ? (size_t(bytes) + 63) / 64 : 1;
  if (posix_memalign(&memory, 64, lines * 64) != 0) throw std::bad_alloc();
  return Memory(static_cast<char*>(memory));
}

Stack::Stack(const Shape& shape, const std::vector<Weights>& all) : shape_(shape) {
  check(shape, all.size());
  std::vector<int64_t> begins;
  for (int64_t i = 0; i < int64_t(all.size()); ++i) {
    begins.push_back(bytes_);
    bytes_ += (cpu::packed_bytes(problem(i / shape.D, 1, 1)) + 63) / 64 * 64;
  }
  memory_ = aligned(bytes_);
  for (size_t i = 0; i < all.size(); ++i) {
    const Weights& w = all[i];
    cpu::ForwardParams params{};
    params.problem = problem(int64_t(i) / shape.D, 1, 1);
    params.w_ih = w.w_ih;
    params.w_hh = w.w_hh;
    params.s_ih = w.s_ih;
    params.s_hh = w.s_hh;
    params.b_ih = w.b_ih;
    params.b_hh = w.b_hh;
    params.w_hr = w.w_hr;
    void* const block = memory_.get() + begins[i];
    cpu::pack(params, block);
    blocks_.push_back(block);
  }
}

Problem Stack::problem(int64_t layer, int64_t T, int64_t B) const {
  Problem p{};
  p.cell = shape_.cell;
  p.dtypes = shape_.dtypes();
  p.T = T;
  p.B = B;
  p.I = shape_.inputs_of(layer);
  p.H = shape_.H;
  p.P = shape_.P;
  p.projected = shape_.projected;
  p.frozen = true;
  return p;
}

const char* Stack::products() const {
  const cpu::Narrow* const narrow = cpu::plan_forward(problem(0, 1, 1), 1).narrow;
  return narrow ? narrow->name : "";
}

void Stack::unpack(int64_t layer, int64_t direction, bool recurrent, void* to) const {
  cpu::unpack(problem(layer, 1, 1), packed(layer, direction), recurrent, to);
}

}  // namespace fusedrnn::frozen

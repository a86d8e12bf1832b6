// See stream.h.
#include "frozen/stream.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

namespace fusedrnn::frozen {
namespace {

constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();

// The calling thread alone: a step is too short to share.
const cpu::Team kAlone{
    [](int, void (*body)(void*, int, int), void* context) { body(context, 0, 1); }, 1};

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("fusedrnn: " + what);
}

}  // namespace

// Holds the stream for one call.
class Stream::Busy {
 public:
  explicit Busy(std::atomic<bool>& flag) : flag_(flag) {
    if (flag.exchange(true, std::memory_order_acquire)) {
      throw std::logic_error(
          "fusedrnn: a stream is one thread's at a time, and another is in it: make one for each");
    }
  }
  ~Busy() { flag_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool>& flag_;
};

Stream::Stream(std::shared_ptr<const Stack> stack, int64_t rows) : stack_(std::move(stack)) {
  const Shape& shape = stack_->shape();
  if (shape.D != 1) refuse("a bidirectional layer cannot be streamed: it begins at the end");
  if (rows < 0) refuse("a stream must have 0 rows or more, got " + std::to_string(rows));
  h_.resize(shape.L);
  c_.resize(shape.L);
  join(rows);
}

int64_t Stream::c_bytes() const {
  const Shape& shape = stack_->shape();
  return spec(shape.cell).has_c ? shape.H * element() : 0;
}

void Stream::prepare(Ready& ready, int64_t T) {
  if (ready.T == T && ready.rows == rows_) return;
  const Shape& shape = stack_->shape();
  const bool has_c = spec(shape.cell).has_c;
  ready = Ready{};
  const int64_t output = T * rows_ * h_bytes();
  ready.between = aligned((shape.L - 1) * output);
  int64_t workspace = 0;
  for (int64_t l = 0; l < shape.L; ++l) {
    cpu::ForwardParams a{};
    a.problem = stack_->problem(l, T, rows_);
    a.packed = stack_->packed(l, 0);
    a.x = l > 0 ? ready.between.get() + (l - 1) * output : nullptr;
    a.y = ready.between.get() + l * output;
    a.ldy = shape.P;
    a.h0 = a.h_n = h_[l].data();
    a.c0 = a.c_n = has_c ? c_[l].data() : nullptr;
    ready.plans.push_back(cpu::plan_forward(a.problem, 1));
    ready.params.push_back(a);
    workspace = std::max(workspace, ready.plans.back().workspace_bytes);
  }
  ready.workspace = aligned(workspace);
  for (cpu::ForwardParams& a : ready.params) a.workspace = ready.workspace.get();
  ready.T = T;
  ready.rows = rows_;
}

void Stream::run(const void* x, void* y, int64_t T) {
  const Busy busy(busy_);
  if (T == 0 || rows_ == 0) return;
  Ready& ready = T == 1 ? step_ : steps_;
  prepare(ready, T);
  ready.params.front().x = x;
  ready.params.back().y = y;
  for (size_t l = 0; l < ready.plans.size(); ++l) {
    ready.plans[l].forward(ready.params[l], ready.plans[l], kAlone);
  }
}

void Stream::reset(int64_t row) {
  const Busy busy(busy_);
  if (row < -1 || row >= rows_) {
    refuse("row must be from 0 to " + std::to_string(rows_ - 1) + ", got " + std::to_string(row));
  }
  const auto clear = [&](std::vector<char>& state, int64_t bytes) {
    const int64_t first = row < 0 ? 0 : row, count = row < 0 ? rows_ : 1;
    std::fill_n(state.begin() + first * bytes, count * bytes, 0);
  };
  for (std::vector<char>& h : h_) clear(h, h_bytes());
  for (std::vector<char>& c : c_) clear(c, c_bytes());
}

void Stream::join(int64_t count) {
  const Busy busy(busy_);
  if (count < 0) refuse("rows that join must be 0 or more, got " + std::to_string(count));
  if (count > kMostRows - rows_) {
    refuse("a stream has at most " + std::to_string(kMostRows) + " rows, and " +
           std::to_string(count) + " would join " + std::to_string(rows_));
  }
  const int64_t rows = rows_ + count;
  // All memory first: where there is too little of it, nothing has changed.
  for (std::vector<char>& h : h_) h.reserve(rows * h_bytes());
  for (std::vector<char>& c : c_) c.reserve(rows * c_bytes());
  step_ = Ready{};  // states may have moved
  steps_ = Ready{};
  for (std::vector<char>& h : h_) h.resize(rows * h_bytes());
  for (std::vector<char>& c : c_) c.resize(rows * c_bytes());
  rows_ = rows;
}

void Stream::leave(int64_t row) {
  const Busy busy(busy_);
  if (row < 0 || row >= rows_) {
    refuse("row must be from 0 to " + std::to_string(rows_ - 1) + ", got " + std::to_string(row));
  }
  const auto drop = [&](std::vector<char>& state, int64_t bytes) {
    state.erase(state.begin() + row * bytes, state.begin() + (row + 1) * bytes);
  };
  for (std::vector<char>& h : h_) drop(h, h_bytes());
  for (std::vector<char>& c : c_) drop(c, c_bytes());
  --rows_;
}

void Stream::read_states(void* h, void* c) const {
  const auto copy = [](const std::vector<std::vector<char>>& from, void* to) {
    auto* out = static_cast<char*>(to);
    for (const std::vector<char>& state : from) {
      out = std::copy(state.begin(), state.end(), out);
    }
  };
  copy(h_, h);
  if (c) copy(c_, c);
}

void Stream::write_states(const void* h, const void* c) {
  const Busy busy(busy_);
  const auto copy = [](const void* from, std::vector<std::vector<char>>& to) {
    const auto* in = static_cast<const char*>(from);
    for (std::vector<char>& state : to) {
      std::copy_n(in, state.size(), state.begin());
      in += state.size();
    }
  };
  copy(h, h_);
  if (c) copy(c, c_);
}

}  // namespace fusedrnn::frozen

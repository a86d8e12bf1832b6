// What the threads of one call share: a barrier light enough for one wait a time step, and the
// division of work by counting.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "cpu/params.h"

namespace fusedrnn::cpu {
namespace {  // compiled for several machines: see simd.h

class Barrier {
 public:
  void wait(int n) {
    if (n > 1) wait_for(arrive(n), n);
  }

  // In two halves: a thread says that it has arrived, and may do other things before it waits until
  // all have. It waits for one arrival before the next.
  unsigned arrive(int n) {
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (n > 1 && arrived_.fetch_add(1, std::memory_order_acq_rel) == n - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    }
    return phase;
  }
  void wait_for(unsigned phase, int n) {
    if (n == 1) return;
    const auto changed = [&] { return phase_.load(std::memory_order_acquire) != phase; };
    for (int spins = 0; spins < 1024; ++spins) {
      if (changed()) return;
    }
    // Who yields to another process gives it a whole slice, 3 ms: not while the threads waited for
    // are only late (2 threads of a Zen 3, a busy process beside: LSTM T100 B1 H128 14 -> 3.5 ms).
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::microseconds(10);
    while (Clock::now() < end) {
      if (changed()) return;
    }
    // With more threads than cores they may not be running.
    while (!changed()) std::this_thread::yield();
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// What a step goes through, i from begin to end: odd steps begin with what the step before used
// last and caches still hold (LSTM T100 B1 H256: 10.3 -> 9.1 us a step, W_hh being as large as L2).
inline int64_t to_and_fro(Range range, int64_t i, int64_t t) {
  return t % 2 ? range.end - 1 - (i - range.begin) : i;
}

inline Range share(int64_t n, int id, int parts) { return {n * id / parts, n * (id + 1) / parts}; }

// Some of so many equal parts of any work.
struct Part {
  int begin, end, parts;
  Range of(int64_t n) const { return {n * begin / parts, n * end / parts}; }
};

// Work done again and again by threads of unequal speed: most of each round is each thread's own,
// which its cache holds; the rest goes, part by part, to whoever comes first. A round begins when
// all have finished the one before.
class Rounds {
 public:
  template <class Work>
  void run(int64_t round, int id, int n, const Work& work) {
    if (n == 1) return work(Part{0, 1, 1});
    const int first = id * kParts;
    work(Part{first, first + kOwn, n * kParts});
    const int free = n * (kParts - kOwn);
    for (;;) {  // every thread counts once more than it gets
      const int64_t taken = taken_.fetch_add(1, std::memory_order_relaxed) - round * (free + n);
      if (taken >= free) return;
      const int part = int(taken) % n * kParts + kOwn + int(taken) / n;
      work(Part{part, part + 1, n * kParts});
    }
  }

 private:
  static constexpr int kParts = 8, kOwn = 6;  // of each thread
  alignas(64) std::atomic<int64_t> taken_{0};
};

// Rows of the batch for each part, of equal total length: packed sequences come longest first.
inline Range share_rows(const Problem& p, int id, int parts) {
  if (!p.packed) return share(p.B, id, parts);
  const int64_t total = p.rows().total();
  auto first_row = [&](int part) {
    const int64_t target = total * part / parts;
    int64_t row = 0, sum = 0, t = p.T - 1;
    for (; row < p.B && sum < target; ++row) {
      while (t > 0 && p.rows().active(t) <= row) --t;  // row's length is t + 1
      sum += t + 1;
    }
    return part == parts ? p.B : row;
  };
  return {first_row(id), first_row(id + 1)};
}

template <class Body>
void run(const Team& team, int threads, Body& body) {
  if (threads <= 1) {
    body(0, 1);
    return;
  }
  team.run(
      threads, [](void* context, int id, int n) { (*static_cast<Body*>(context))(id, n); }, &body);
}

}  // namespace
}  // namespace fusedrnn::cpu

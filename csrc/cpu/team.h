// What the threads of one call share: a barrier that is light enough to wait at once a time step,
// and the division of work, in equal parts or by counting.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "cpu/params.h"
#include "cpu/tuning.h"

namespace fusedrnn::cpu {
namespace {  // compiled for several machines: see simd.h

class Barrier {
 public:
  void wait(int n) {
    if (n > 1) wait_for(arrive(n), n);
  }

  // The same in two halves: a thread says that it has arrived, and may work on before it waits
  // until all others have arrived too. It does so before its next arrival.
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
    for (int spins = 0; spins < kBarrierSpins; ++spins) {
      if (changed()) return;
    }
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::microseconds(kBarrierMicroseconds);
    while (Clock::now() < end) {
      if (changed()) return;
    }
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

// The i-th of the items that every step goes through, in turn from both ends: a step begins with
// what the step before used last, which caches still hold (LSTM T100 B1 H256, whose W_hh is as
// large as L2: 10.3 -> 9.1 us a step).
inline int64_t to_and_fro(Range range, int64_t i, int64_t t) {
  return t % 2 ? range.end - 1 - (i - range.begin) : i;
}

inline Range share(int64_t n, int id, int parts) { return {n * id / parts, n * (id + 1) / parts}; }

// The parts [begin, end) of any work that is cut into `parts` equal ones.
struct Part {
  int begin, end, parts;
  Range of(int64_t n) const { return {n * begin / parts, n * end / parts}; }
};

// Work that is done again and again by threads of unequal speed. Most of each round is a thread's
// own, the same every time, so that its cache holds it; the rest goes, part by part, to whichever
// thread is free first. A round begins when all threads have finished the one before.
class Rounds {
 public:
  template <class Work>
  void run(int64_t round, int id, int n, const Work& work) {
    if (n == 1) return work(Part{0, 1, 1});
    const int first = id * kParts;
    work(Part{first, first + kOwnParts, n * kParts});
    const int free = n * (kParts - kOwnParts);
    for (;;) {  // every thread counts once more than it gets parts
      const int64_t taken = taken_.fetch_add(1, std::memory_order_relaxed) - round * (free + n);
      if (taken >= free) return;
      const int part = int(taken) % n * kParts + kOwnParts + int(taken) / n;
      work(Part{part, part + 1, n * kParts});
    }
  }

 private:
  alignas(64) std::atomic<int64_t> taken_{0};
};

// The batch rows of part `id`. Packed, the parts have equal total lengths rather than equal numbers
// of rows.
inline Range share_rows(const Problem& p, int id, int parts) {
  if (!p.packed) return share(p.B, id, parts);
  const int64_t total = p.rows().total();
  auto first_row = [&](int part) {
    const int64_t target = total * part / parts;
    int64_t row = 0, sum = 0, t = p.T - 1;
    for (; row < p.B && sum < target; ++row) {
      t = p.rows().last_step(row, t);
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

// Two calls at once, each by half of a team's threads: the directions of a layer.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

#include "cpu/params.h"
#include "cpu/tuning.h"

namespace fusedrnn::cpu {

// Half of a team. Its first thread makes the call, whose kernel asks a Team for threads; the other
// threads wait here until it does, or until the call is over and asked for none.
class Half {
 public:
  template <class Call>
  void lead(int size, const Call& call) {
    size_ = size;
    current_ = this;
    call(Team{run, size});
    current_ = nullptr;
    state_.store(kOver, std::memory_order_release);
  }

  void follow(int id) {
    int state, spins = kHalfSpins;
    while ((state = state_.load(std::memory_order_acquire)) == kWaiting) {
      if (spins > 0) {
        --spins;
      } else {
        std::this_thread::yield();
      }
    }
    if (state == kOver || id >= threads_) return;
    body_(context_, id, threads_);
    done_.fetch_add(1, std::memory_order_release);
  }

 private:
  enum { kWaiting, kCalled, kOver };

  static void run(int wanted, void (*body)(void* context, int id, int n), void* context) {
    Half& half = *current_;
    if (half.state_.load(std::memory_order_relaxed) != kWaiting) return body(context, 0, 1);
    half.threads_ = std::min(wanted, half.size_);
    half.body_ = body;
    half.context_ = context;
    half.state_.store(kCalled, std::memory_order_release);
    body(context, 0, half.threads_);
    while (half.done_.load(std::memory_order_acquire) != half.threads_ - 1) {
      std::this_thread::yield();
    }
  }

  static inline thread_local Half* current_ = nullptr;

  int size_ = 1, threads_ = 1;
  void (*body_)(void* context, int id, int n) = nullptr;
  void* context_ = nullptr;
  std::atomic<int> state_{kWaiting}, done_{0};
};

// call(team, 0) and call(team, 1), at once where there are two threads or more.
template <class Call>
void in_halves(const Team& team, const Call& call) {
  struct Context {
    const Call& call;
    Half halves[2];
  } context{call, {}};
  team.run(
      team.threads,
      [](void* shared, int id, int n) {
        Context& context = *static_cast<Context*>(shared);
        if (n == 1) {
          for (int which : {0, 1})
            context.halves[which].lead(1, [&](const Team& half) { context.call(half, which); });
          return;
        }
        const int first = n / 2, which = id < first ? 0 : 1, member = id - which * first;
        if (member > 0) return context.halves[which].follow(member);
        context.halves[which].lead(which ? n - first : first,
                                   [&](const Team& half) { context.call(half, which); });
      },
      &context);
}

// How the directions of a layer share the threads and a workspace: at once by half of the threads
// each, or one after the other by all.
struct Directions {
  Directions(const Problem& forward, int D, const Team& team,
             Plan (*plan_of)(const Problem& problem, int threads, Reasons* reasons))
      : D(D),
        team(team),
        each(threads_of_direction(forward, D, team.threads)),
        plan(plan_of(forward, each, nullptr)) {}

  bool at_once() const { return each < team.threads; }
  // Where direction d's workspace begins, and the bytes of all.
  int64_t begin(int64_t d) const { return at_once() ? d * plan.workspace_bytes : 0; }
  int64_t bytes() const { return begin(D - 1) + plan.workspace_bytes; }

  // call(team, d) for each direction.
  template <class Call>
  void run(const Call& call) const {
    if (at_once()) return in_halves(team, call);
    for (int d = 0; d < D; ++d) call(team, d);
  }

  const int D;
  const Team team;
  const int each;  // threads of a direction
  const Plan plan;
};

}  // namespace fusedrnn::cpu

// Who goes on. Fibers that can stand in a queue, all others in a list of what they wait for; one
// that must wait switches straight to the next. Nothing here is instrumented for ThreadSanitizer
// (see fiber.h), which instead is told what orders what.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "fiber.h"
#include "machine.h"

namespace fusedrnn::shim {

const Self* self = nullptr;
Machine& machine = *new Machine;  // for ever: LeakSanitizer looks after statics are gone

void fail(const Site& site, const char* format, ...) {
  std::fprintf(stderr, "fusedrnn::shim: ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (self) {
    std::fprintf(stderr, ": thread %d of block %lld, row %d,", self->thread,
                 static_cast<long long>(self->block), self->row);
  }
  std::fprintf(stderr, " at %s:%u\n", site.file_name(), unsigned(site.line()));
  std::abort();
}

size_t chance(size_t n) {  // xorshift64*
  uint64_t& x = machine.random;
  x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
  return size_t((x * 0x2545f4914f6cdd1dull >> 32) * n >> 32);
}

void make_ready(Fiber* fiber) { (fiber->starved ? machine.starved : machine.ready).push(fiber); }

void settle(uint64_t* barrier, Block& block, const Site& site) {
  Phase& phase = *reinterpret_cast<Phase*>(barrier);
  constexpr int kMostBytes = (1 << 20) - 1;
  if (phase.bytes > kMostBytes || phase.bytes < -kMostBytes)
    fail(site, "a barrier cannot count %d bytes", phase.bytes);
  if (phase.pending) return;
  if (phase.bytes < 0) fail(site, "%d bytes more than the barrier was armed for", -phase.bytes);
  if (phase.bytes > 0) return;
  phase.parity ^= 1;
  phase.pending = 1;
  Fiber** link = &block.awaiting;
  while (Fiber* fiber = *link) {
    if (fiber->awaited == barrier) {
      *link = fiber->next;
      make_ready(fiber);
    } else {
      link = &fiber->next;
    }
  }
}

void deliver(const Message& message) {
  const int bytes = message.count * int(sizeof(float));
  volatile float* const to = message.to;  // a call of memcpy would be watched by ThreadSanitizer
  for (int i = 0; i < message.count; ++i) to[i] = message.values[i];
  reinterpret_cast<Phase*>(message.barrier)->bytes -= bytes;
  settle(message.barrier, *message.target, message.site);
}

namespace {

void deliver_any() {
  const size_t i = chance(machine.sent.size());
  const Message message = machine.sent[i];
  machine.sent[i] = machine.sent.back();
  machine.sent.pop_back();
  deliver(message);
}

// Who waits where, a line for each place.
[[noreturn]] void report_deadlock() {
  std::fprintf(stderr, "fusedrnn::shim: deadlock\n");
  std::vector<bool> told(machine.fibers.size());
  for (size_t i = 0; i < told.size(); ++i) {
    const Fiber& first = *machine.fibers[i];
    if (told[i]) continue;
    int alike = 0;
    for (size_t k = i; k < told.size(); ++k) {
      const Fiber& other = *machine.fibers[k];
      const bool same =
          other.block == first.block && other.ended == first.ended &&
          (first.ended || (other.doing == first.doing && other.site.line() == first.site.line() &&
                           !std::strcmp(other.site.file_name(), first.site.file_name())));
      alike += same;
      if (same) told[k] = true;
    }
    std::fprintf(stderr, "  block %lld, row %d: thread %d", (long long)first.self.block,
                 first.self.row, first.self.thread);
    if (alike > 1) std::fprintf(stderr, " and %d more", alike - 1);
    if (first.ended) {
      std::fprintf(stderr, " ended\n");
    } else {
      std::fprintf(stderr, " in %s at %s:%u\n", first.doing, first.site.file_name(),
                   unsigned(first.site.line()));
    }
  }
  std::abort();
}

}  // namespace

Fiber* choose() {
  Machine& m = machine;
  if (m.schedule.order == Order::kInOrder) {
    if (m.ready.empty()) report_deadlock();
    return m.ready.pop(0);
  }
  while (true) {
    const bool waits =
        m.sent_starved ? m.ready.empty() && m.starved.empty() : m.ready.empty() || chance(4) == 0;
    if (!m.sent.empty() && waits) {
      deliver_any();
      continue;
    }
    if (!m.ready.empty()) return m.ready.pop(chance(m.ready.size()));
    if (!m.starved.empty()) return m.starved.pop(chance(m.starved.size()));
    report_deadlock();
  }
}

void switch_to(Fiber* to, Stack& from, bool ends) {
  machine.current = to;
  self = &to->self;
  switch_stacks(from, to->stack, ends);
}

void give_way(const char* doing, const Site& site) {
  Fiber* const fiber = machine.current;
  fiber->doing = doing;
  fiber->site = site;
  Fiber* const next = choose();
  if (next != fiber) switch_to(next, fiber->stack, false);
}

void pass(Gate& gate, int n, bool orders, const char* doing, const Site& site) {
  Fiber* const fiber = machine.current;
  Token* token = &gate.tokens[gate.generation & 1];
  if (orders) order_before(token);
  if (++gate.arrived < n) {
    fiber->next = gate.waiting;
    gate.waiting = fiber;
    give_way(doing, site);
  } else {
    gate.arrived = 0;
    ++gate.generation;
    for (Fiber* waiting = std::exchange(gate.waiting, nullptr); waiting;) {
      Fiber* const next = waiting->next;
      make_ready(waiting);
      waiting = next;
    }
  }
  if (orders) order_after(token);
}

}  // namespace fusedrnn::shim

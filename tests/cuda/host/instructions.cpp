// What a thread of a kernel calls: barriers, shuffles, stores to other blocks, prefetches. As
// scheduler.cpp not instrumented.
#include <algorithm>
#include <cstring>
#include <vector>

#include "fiber.h"
#include "machine.h"
#include "shim.h"

namespace fusedrnn::shim {

namespace {

Warp& own_warp() { return machine.current->block->warps[size_t(self->thread / kWarp)]; }

// All lanes of a warp must be at one and the same instruction.
void keep_together(Warp& warp, int mask, const Site& site) {
  if (warp.lanes == 0) {
    warp.mask = mask;
    warp.site = site;
  } else if (warp.site.line() != site.line() || warp.site.column() != site.column() ||
             std::strcmp(warp.site.file_name(), site.file_name()) != 0) {
    fail(site, "a lane of the warp is at %s:%u", warp.site.file_name(), unsigned(warp.site.line()));
  } else if (warp.mask != mask) {
    fail(site, "a lane of the warp shuffles by %d, not by %d", warp.mask, mask);
  }
  warp.lanes = (warp.lanes + 1) % kWarp;
}

// The offset in shared memory of something of `size` bytes that a thread names by its own address.
int64_t offset_of(const void* pointer, int64_t size, const char* what, const Site& site) {
  const int64_t offset = static_cast<const unsigned char*>(pointer) - self->shared;
  if (offset < 0 || offset + size > machine.grid.shared_bytes || offset % size)
    fail(site, "%s is not in shared memory, or not aligned", what);
  return offset;
}

Phase& phase_of(uint64_t* barrier, const Site& site) {
  Phase& phase = *reinterpret_cast<Phase*>(barrier);
  if (phase.magic != kMagic) fail(site, "the barrier has not been made");
  if (__tsan_read8) __tsan_read8(barrier);
  return phase;
}

Token* token_of(Block& block, int64_t barrier, int parity) {
  return &block.tokens[barrier / 8 % kTokens][parity];
}

}  // namespace

void block_sync(const Site& site) {
  keep_together(own_warp(), 0, site);
  pass(machine.current->block->gate, machine.grid.threads, true, "block_sync", site);
}

void cluster_sync(const Site& site) {
  keep_together(own_warp(), 0, site);
  pass(machine.gate, machine.grid.threads * machine.grid.cluster, true, "cluster_sync", site);
}

float shuffle_xor(float value, int mask, const Site& site) {
  Warp& warp = own_warp();
  if (mask < 0 || mask >= kWarp) fail(site, "a shuffle by %d", mask);
  keep_together(warp, mask, site);
  float* const values = warp.values[warp.gate.generation & 1];
  const int lane = self->thread % kWarp;
  values[lane] = value;
  pass(warp.gate, kWarp, machine.shuffle_orders, "shuffle_xor", site);
  return values[lane ^ mask];
}

void barrier_init(uint64_t* barrier, const Site& site) {
  offset_of(barrier, sizeof *barrier, "the barrier", site);
  if (__tsan_write8) __tsan_write8(barrier);
  *reinterpret_cast<Phase*>(barrier) = {0, 1, 0, kMagic};
}

void barrier_arm(uint64_t* barrier, int bytes, const Site& site) {
  const int64_t offset = offset_of(barrier, sizeof *barrier, "the barrier", site);
  Phase& phase = phase_of(barrier, site);
  if (phase.pending == 0) fail(site, "the barrier is armed a second time in a phase");
  order_before(token_of(*machine.current->block, offset, phase.parity));
  phase.pending = 0;
  phase.bytes += bytes;
  settle(barrier, *machine.current->block, site);
}

void barrier_wait(uint64_t* barrier, int parity, const Site& site) {
  const int64_t offset = offset_of(barrier, sizeof *barrier, "the barrier", site);
  Fiber* const fiber = machine.current;
  while (phase_of(barrier, site).parity == (parity & 1)) {
    fiber->awaited = barrier;
    fiber->next = fiber->block->awaiting;
    fiber->block->awaiting = fiber;
    give_way("barrier_wait", site);
  }
  order_after(token_of(*fiber->block, offset, parity & 1));
}

void send(float* to, int rank, const float* values, int count, uint64_t* barrier,
          const Site& site) {
  const int64_t to_offset = offset_of(to, count * int64_t(sizeof *to), "where to send", site);
  const int64_t barrier_offset = offset_of(barrier, sizeof *barrier, "the barrier", site);
  if (rank < 0 || rank >= machine.grid.cluster) fail(site, "a store sent to rank %d", rank);
  Block& target = machine.blocks[size_t(rank)];
  if (target.live == 0) fail(site, "a store sent to a block that has ended, of rank %d", rank);
  unsigned char* const shared = target.memory + kGuard;
  Message message{reinterpret_cast<float*>(shared + to_offset),         {},      count,
                  reinterpret_cast<uint64_t*>(shared + barrier_offset), &target, site};
  std::copy_n(values, count, message.values);
  const Phase& phase = phase_of(message.barrier, site);
  for (int i = 0; __tsan_write4 && i < count; ++i) __tsan_write4(message.to + i);
  order_before(token_of(target, barrier_offset, phase.parity));
  if (machine.schedule.order == Order::kInOrder || watches_threads()) {
    deliver(message);
  } else {
    machine.sent.push_back(message);
  }
}

void prefetch(const float* from, const Site& site) {
  if (machine.prefetched.empty()) return;
  for (Prefetched& range : machine.prefetched) {
    const int64_t i = from - range.first;
    if (i < 0 || i >= int64_t(range.done.size())) continue;
    range.done[size_t(i)] = true;
    return;
  }
  fail(site, "a prefetch of what is not to be prefetched");
}

void allow_prefetch(const float* first, int64_t count) {
  machine.prefetched.push_back({first, std::vector<bool>(size_t(count))});
}

void forget_prefetch() { machine.prefetched.clear(); }

bool was_prefetched(const float* from) {
  for (const Prefetched& range : machine.prefetched) {
    const int64_t i = from - range.first;
    if (i >= 0 && i < int64_t(range.done.size())) return range.done[size_t(i)];
  }
  return false;
}

}  // namespace fusedrnn::shim

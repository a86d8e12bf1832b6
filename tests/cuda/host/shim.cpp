// The scheduler behind shim.h. Fibers that can go on stand in a queue, all others in a list of what
// they wait for; one that must wait switches straight to the next. Nothing here is instrumented for
// ThreadSanitizer (see fiber.h), which instead is told what orders what.
#include "shim.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/params.h"
#include "fiber.h"
#include "machine.h"

namespace fusedrnn::shim {

const Self* self = nullptr;

namespace {

struct Machine {
  std::mutex mutex;
  Schedule schedule;
  bool scheduled = false, shuffle_orders = true;
  uint64_t random = 0;
  void (*body)(const void*) = nullptr;
  const void* call = nullptr;
  Grid grid{};

  std::vector<Fiber*> pool;
  std::vector<Fiber*> fibers;  // of the cluster that runs
  std::vector<Block> blocks;
  std::vector<unsigned char*> memories;
  Gate gate;
  int live = 0;
  Queue ready, starved;
  std::vector<Message> sent;
  bool sent_starved = false;
  std::vector<Prefetched> prefetched;
  Stack main;
  Fiber* current = nullptr;
  Token begin, end;
};
Machine& machine = *new Machine;  // for ever: LeakSanitizer looks after statics are gone

bool watches_threads() { return __tsan_create_fiber != nullptr; }

[[noreturn, gnu::format(printf, 2, 3)]] void fail(const Site& site, const char* format, ...) {
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

// A phase ends when it has been armed and all its bytes are there.
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

// Until another fiber makes this one ready.
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

// A block that ends takes its shared memory with it.
void leave_block(Block& block, const Site& site) {
  if (--block.live) return;
  for (const Message& message : machine.sent) {
    if (message.target == &block) fail(message.site, "its block ended before the store arrived");
  }
  for (int64_t i = 0; i < 2 * kGuard && !__asan_poison_memory_region; ++i) {
    const int64_t at = i < kGuard ? i : i + machine.grid.shared_bytes;
    if (block.memory[at] != kGuardByte)
      fail(site, "byte %lld of shared memory is not its own, but written",
           (long long)(at - kGuard));
  }
}

[[noreturn]] void run_fiber() {
  if (__sanitizer_finish_switch_fiber) {
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!machine.main.bottom) {  // the first fiber comes from there
      machine.main.bottom = bottom;
      machine.main.size = size;
    }
  }
  order_after(&machine.begin);
  machine.body(machine.call);
  order_before(&machine.end);
  Fiber* const fiber = machine.current;
  if (*fiber->memory != kGuardByte) fail(Site::current(), "a fiber's stack overflowed");
  fiber->ended = true;
  leave_block(*fiber->block, Site::current());
  if (--machine.live) {
    switch_to(choose(), fiber->stack, true);
  } else {
    self = nullptr;
    switch_stacks(fiber->stack, machine.main, true);
  }
  std::abort();
}

// Stacks start at different places of a page, or all would fall on the same lines of the cache.
void reserve_fibers(size_t count) {
  const bool watched = watches_threads() || __asan_poison_memory_region;
  const size_t size = watched ? 256 << 10 : 64 << 10;
  const size_t old = machine.pool.size();
  if (count <= old) return;
  void* memory = mmap(nullptr, size * (count - old), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail(Site::current(), "no memory for the stacks");
  for (size_t i = old; i < count; ++i) {
    Fiber* fiber = new Fiber;
    fiber->memory = static_cast<unsigned char*>(memory) + size * (i - old);
    *fiber->memory = kGuardByte;
    fiber->stack.size = size - i * 192 % 16384;
    if (watches_threads()) fiber->stack.tsan = __tsan_create_fiber(0);
    machine.pool.push_back(fiber);
  }
}

unsigned char* allocate_shared(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, size_t(bytes + 2 * kGuard)))
    fail(Site::current(), "no memory for a block");
  std::memset(memory, kGuardByte, size_t(bytes + 2 * kGuard));
  unsigned char* const shared = static_cast<unsigned char*>(memory) + kGuard;
  std::memset(shared, 0xff, size_t(bytes));
  if (__asan_poison_memory_region) {
    __asan_poison_memory_region(memory, kGuard);
    __asan_poison_memory_region(shared + bytes, kGuard);
  }
  return static_cast<unsigned char*>(memory);
}

// Who is to starve: by the seed one block, all blocks but one, one warp, all warps but one, one
// thread, or what is sent.
void draw_starved() {
  const int threads = machine.grid.threads, cluster = machine.grid.cluster;
  const unsigned kind = (machine.schedule.seed + (cluster > 1 ? 0 : 2)) % (cluster > 1 ? 6 : 5);
  const int rank = int(chance(size_t(cluster))), thread = int(chance(size_t(threads)));
  machine.sent_starved = kind == 5;
  for (Fiber* fiber : machine.fibers) {
    const bool block = fiber->self.rank == rank;
    const bool warp = block && fiber->self.thread / kWarp == thread / kWarp;
    const bool alone = block && fiber->self.thread == thread;
    const bool starved[] = {block, !block, warp, !warp, alone, false};
    fiber->starved = starved[kind];
  }
}

void run_cluster(int64_t first_block, int row, size_t first_fiber) {
  Machine& m = machine;
  const Grid& grid = m.grid;
  m.blocks = std::vector<Block>(size_t(grid.cluster));
  m.gate = Gate{};
  m.fibers.clear();
  m.live = grid.cluster * grid.threads;
  m.ready.reset(size_t(m.live));
  m.starved.reset(size_t(m.live));
  m.sent_starved = false;
  for (int rank = 0; rank < grid.cluster; ++rank) {
    Block& block = m.blocks[size_t(rank)];
    block.memory = allocate_shared(grid.shared_bytes);
    block.live = grid.threads;
    block.warps.resize(size_t(grid.threads / kWarp));
    m.memories.push_back(block.memory);
    for (int thread = 0; thread < grid.threads; ++thread) {
      Fiber* fiber = m.pool[first_fiber + m.fibers.size()];
      fiber->self = {
          thread, rank, row, first_block + rank, grid.blocks * grid.threads, block.memory + kGuard};
      fiber->block = &block;
      fiber->starved = fiber->ended = false;
      prepare(fiber->stack, fiber->memory, fiber->stack.size, run_fiber);
      m.fibers.push_back(fiber);
    }
  }
  if (m.schedule.order == Order::kStarving) draw_starved();
  for (Fiber* fiber : m.fibers) make_ready(fiber);
  order_before(&m.begin);
  switch_to(choose(), m.main, false);
}

// What a GPU checks when a kernel is started, and that warps are whole.
int refusal(const Grid& grid) {
  constexpr int kInvalidValue = 1, kInvalidConfiguration = 9;
  int error = 0;
  const cuda::Device device = cuda::device(0, &error);
  if (error) return error;
  if (grid.shared_bytes < 0 || grid.shared_bytes > device.shared_bytes) return kInvalidValue;
  int log2 = 0;
  while (log2 < 5 && 1 << log2 != grid.cluster) ++log2;
  const bool fits = grid.blocks >= 1 && grid.blocks <= 0x7fffffff && grid.rows >= 1 &&
                    grid.rows <= 65535 && grid.threads >= kWarp && grid.threads <= 1024 &&
                    grid.threads % kWarp == 0 && log2 < 5 && grid.blocks % grid.cluster == 0 &&
                    (grid.cluster == 1 || device.clusters[log2] > 0);
  return fits ? 0 : kInvalidConfiguration;
}

Schedule schedule_of_environment() {
  const char* const text = std::getenv("FUSEDRNN_HOST_SCHEDULE");
  if (!text || !std::strcmp(text, "in order")) return {};
  unsigned seed = 0;
  if (std::sscanf(text, "random:%u", &seed) == 1) return {Order::kRandom, seed};
  if (std::sscanf(text, "starving:%u", &seed) == 1) return {Order::kStarving, seed};
  fail(Site::current(), "FUSEDRNN_HOST_SCHEDULE=%s: not random:N or starving:N", text);
}

}  // namespace

void set_schedule(Schedule schedule) {
  const std::lock_guard lock(machine.mutex);
  machine.schedule = schedule;
  machine.scheduled = true;
}

void set_shuffle_orders(bool orders) { machine.shuffle_orders = orders; }

int run(const Grid& grid, void (*body)(const void*), const void* call) {
  if (const int error = refusal(grid)) return error;
  const std::lock_guard lock(machine.mutex);
  Machine& m = machine;
  if (!m.scheduled) m.schedule = schedule_of_environment();
  m.scheduled = true;
  m.random = 0x9e3779b97f4a7c15ull * (m.schedule.seed + 1);
  m.body = body;
  m.call = call;
  m.grid = grid;
  m.main = Stack{};
  if (watches_threads()) m.main.tsan = __tsan_get_current_fiber();

  // Fibers used again are the same threads to ThreadSanitizer, so two blocks that run one after the
  // other use two sets of them: or no race between blocks would be found.
  const size_t count = size_t(grid.cluster * grid.threads);
  const size_t sets = watches_threads() && count <= 1024 ? 2 : 1;
  reserve_fibers(sets * count);
  size_t set = 0;
  for (int row = 0; row < grid.rows; ++row) {
    for (int64_t block = 0; block < grid.blocks; block += grid.cluster) {
      run_cluster(block, row, set * count);
      set = (set + 1) % sets;
    }
  }
  order_after(&m.end);
  for (unsigned char* memory : m.memories) {
    if (__asan_unpoison_memory_region)
      __asan_unpoison_memory_region(memory, size_t(grid.shared_bytes + 2 * kGuard));
    std::free(memory);
  }
  m.memories.clear();
  return 0;
}

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

// A launch: what a GPU would refuse, the fibers and their memory, one cluster after the other. As
// scheduler.cpp not instrumented.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "cuda/params.h"
#include "fiber.h"
#include "machine.h"
#include "shim.h"

namespace fusedrnn::shim {

namespace {

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

}  // namespace fusedrnn::shim

// Runs kernels on a CPU: every thread of a block is a fiber, all fibers share one thread of the
// system, and whatever a thread of a GPU would wait for makes a fiber give way. The blocks of a
// cluster run together, clusters one after the other.
//
// What the hardware leaves undefined stops the program with a report of who did what and where: all
// waiting for ever, a barrier used before it is made or armed twice, a store sent to a block that
// has ended or still under way when its block ends, lanes of a warp at different shuffles or
// barriers, a write next to the shared memory (which holds nan at first). Under AddressSanitizer
// every access next to it is found; under ThreadSanitizer each fiber counts as a thread, and what
// only the order of this run kept apart is found as a race.
//
// Not seen: the instructions behind csrc/cuda/primitives.cuh, the scope of their fences, and how
// the approximate ones round.
#pragma once

#include <cstdint>
#include <source_location>

namespace fusedrnn::shim {

// Which of the fibers that can go on does. kInOrder: the one that could first, and a store sent
// arrives at once. kRandom: any, and it arrives at any time before its barrier says so (at once
// under ThreadSanitizer). kStarving: likewise, but a block, a warp, a thread or what was sent,
// which one the seed decides, only when nothing else can.
enum class Order { kInOrder, kRandom, kStarving };
struct Schedule {
  Order order = Order::kInOrder;
  unsigned seed = 0;
};
// Holds for the launches that follow; FUSEDRNN_HOST_SCHEDULE=random:7 or =starving:7 until then.
void set_schedule(Schedule schedule);
// Whether a shuffle orders memory accesses of its warp. It does so for reads, whose values it may
// pass on, not for writes; ThreadSanitizer knows only both (the default) or neither.
void set_shuffle_orders(bool orders);

// What a thread knows of itself.
struct Self {
  int thread, rank, row;
  int64_t block, grid_threads;
  unsigned char* shared;
};
extern const Self* self;

using Site = std::source_location;  // of a call in a kernel: lanes of a warp must agree on it

void block_sync(const Site& site);
void cluster_sync(const Site& site);
float shuffle_xor(float value, int mask, const Site& site);
void barrier_init(uint64_t* barrier, const Site& site);
void barrier_arm(uint64_t* barrier, int bytes, const Site& site);
void barrier_wait(uint64_t* barrier, int parity, const Site& site);
// `count` floats, 1, 2 or 4, to an address that is a multiple of their size.
void send(float* to, int rank, const float* values, int count, uint64_t* barrier, const Site& site);

// A prefetch reads nothing here, but must point into memory that is to be prefetched, where the
// caller has said which that is. Nothing is said at first.
void prefetch(const float* from, const Site& site);
void allow_prefetch(const float* first, int64_t count);  // besides what is allowed already
void forget_prefetch();
bool was_prefetched(const float* from);

struct Grid {
  int64_t blocks;
  int rows, threads, cluster;
  int64_t shared_bytes;
};
// 0, or the cudaError_t by which a GPU would refuse the grid.
int run(const Grid& grid, void (*body)(const void* call), const void* call);

}  // namespace fusedrnn::shim

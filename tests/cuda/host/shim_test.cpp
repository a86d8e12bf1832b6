// The shim on trial: kernels that are right and must come out right in every order, and kernels
// each with one fault, which the shim or a sanitizer must report. Arguments: a case, and a schedule
// (0 in order, 1 random, 2 starving) with its seed. Prints "right" or "wrong" if the case ends.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/primitives.cuh"

namespace fusedrnn::cuda {
namespace {

using shim::Grid;

constexpr int kThreads = 64;
constexpr int kSteps = 7;

struct Params {
  const char* name;
  float* out;
  bool is(const char* other) const { return std::strcmp(name, other) == 0; }
};

// Threads pass values to their neighbours through two buffers, a barrier a step.
void neighbours(Params p) {
  float* const buffers = reinterpret_cast<float*>(shared_memory());
  const int thread = thread_index();
  float value = float(thread);
  for (int step = 0; step < kSteps; ++step) {
    const bool single = p.is("single buffer");
    float* const buffer = buffers + (single ? 0 : step % 2 * kThreads);
    buffer[thread] = value;
    if (!p.is("no barrier")) block_sync();
    value = buffer[(thread + 1) % kThreads] + 1;
  }
  p.out[block_index() * kThreads + thread] = value;
  if (p.is("write past shared memory") && thread == 3) buffers[2 * kThreads] = 1;
  if (p.is("read past shared memory") && thread == 3) p.out[0] += buffers[2 * kThreads];
  if (p.is("write before shared memory") && thread == 3) buffers[-1] = 1;
  if (p.is("blocks write to one place")) p.out[thread] = float(block_index());
}
float neighbours_result(int, int thread) { return float((thread + kSteps) % kThreads + kSteps); }

// The sum of a warp's threads; block_sync only for the faults.
void warp_sum(Params p) {
  const int thread = thread_index();
  float sum = float(thread);
  const bool lane_apart = thread == 5;
  if (p.is("a thread misses a barrier") && lane_apart) return;
  if (p.is("lanes at different barriers") && lane_apart) {
    block_sync();
  } else {
    block_sync();
  }
  for (int mask = 1; mask < 32; mask *= 2)
    sum += shuffle_xor(sum, p.is("lanes with different masks") && lane_apart ? 3 : mask);
  float* const shared = reinterpret_cast<float*>(shared_memory());
  if (p.is("a warp writes and reads")) {
    shared[thread] = sum;
    sum = shuffle_xor(sum, 1);
    sum = shared[thread ^ 1];
  }
  p.out[block_index() * kThreads + thread] = sum;
}
float warp_sum_result(int, int thread) { return float(32 * (thread / 32 * 32) + 31 * 16); }

// Blocks of a cluster of 4 send their threads' values around, two buffers and barriers, and add 1.
void ring(Params p) {
  constexpr int kBytes = kThreads * 4;
  float* const buffers = reinterpret_cast<float*>(shared_memory());
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(buffers + 2 * kThreads);
  const int thread = thread_index(), target = (cluster_rank() + 1) % 4;
  if (thread == 0 && !p.is("barrier not made")) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(barriers + i);
      if (!p.is("not armed"))
        barrier_arm(barriers + i, p.is("armed for half") ? kBytes / 2 : kBytes);
      if (p.is("armed twice")) barrier_arm(barriers + i, kBytes);
    }
  }
  block_sync();
  if (!p.is("no first cluster barrier")) cluster_sync();
  float value = float(thread + 100 * cluster_rank());
  for (int step = 0; step < kSteps; ++step) {
    const int even = p.is("single barrier") ? 0 : step % 2;
    const int parity = p.is("single barrier") ? step % 2 : step / 2 % 2;
    send(buffers + even * kThreads + thread, target, value + 1, barriers + even);
    if (!p.is("no wait")) barrier_wait(barriers + even, p.is("wrong parity") ? 0 : parity);
    value = buffers[even * kThreads + thread];
    if (thread == 0 && step + 2 < kSteps && !p.is("not armed again"))
      barrier_arm(barriers + even, kBytes);
    // A block may be a step ahead of the next, not two.
    if (step % 2) cluster_sync();
  }
  if (p.is("sent and not awaited"))
    send(buffers + thread, target, 0, barriers);
  else if (p.is("sent to nowhere"))
    send(p.out, target, 0, barriers);
  p.out[block_index() * kThreads + thread] = value;
  if (p.is("sent to a block that ended") && cluster_rank() == 0) {
    for (int i = 0; i < 1000; ++i) shuffle_xor(0, 1);
    send(buffers + thread, target, 0, barriers);
  }
}
// As the ring, with two and four floats a send from every other thread and every fourth.
void wide_ring(Params p) {
  float* const buffer = reinterpret_cast<float*>(shared_memory());
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(buffer + 2 * kThreads);
  const int thread = thread_index(), target = (cluster_rank() + 1) % 4;
  if (thread == 0) {
    barrier_init(barrier);
    barrier_arm(barrier, 2 * kThreads * 4);
  }
  block_sync();
  cluster_sync();
  const float value = float(thread + 100 * cluster_rank());
  float* const fours = buffer + kThreads;
  if (thread % 2 == 0)
    send(reinterpret_cast<float2*>(buffer + thread), target, make_float2(value, value + 1),
         barrier);
  if (thread % 4 == 0 && p.is("sent past shared memory"))
    send(reinterpret_cast<float4*>(buffer + 2 * kThreads + 4), target, make_float4(0, 0, 0, 0),
         barrier);
  if (thread % 4 == 0)
    send(reinterpret_cast<float4*>(fours + thread + (p.is("four to a place for two") ? 2 : 0)),
         target, make_float4(value, value + 1, value + 2, value + 3), barrier);
  barrier_wait(barrier, 0);
  p.out[block_index() * kThreads + thread] = buffer[thread] + fours[thread];
}
float wide_ring_result(int block, int thread) {
  return float(2 * (thread + 100 * ((block % 4 + 3) % 4)));
}

float ring_result(int block, int thread) {
  return float(thread + 100 * ((block % 4 + 4 * kSteps - kSteps) % 4) + kSteps);
}

// Where a thread is in a grid of 3 by 2 blocks.
void geometry(Params p) {
  const int64_t at = (grid_row() * 3 + block_index()) * kThreads + thread_index();
  p.out[at] = float(at + grid_threads());
}
float geometry_result(int block, int thread) { return float(block * kThreads + thread + 192); }

struct Kernel {
  void (*kernel)(Params);
  float (*result)(int block, int thread);
  int blocks, rows, cluster, shared_bytes;
};
constexpr Kernel kNeighbours{neighbours, neighbours_result, 2, 1, 1, 2 * kThreads * 4};
constexpr Kernel kWarpSum{warp_sum, warp_sum_result, 2, 1, 1, kThreads * 4};
constexpr Kernel kRing{ring, ring_result, 8, 1, 4, 2 * kThreads * 4 + 16};
constexpr Kernel kWideRing{wide_ring, wide_ring_result, 8, 1, 4, 2 * kThreads * 4 + 16};
constexpr Kernel kGeometry{geometry, geometry_result, 3, 2, 1, 0};

struct Case {
  const char* name;
  Kernel kernel;
};
constexpr Case kCases[] = {
    {"neighbours", kNeighbours},
    {"single buffer", kNeighbours},
    {"no barrier", kNeighbours},
    {"write past shared memory", kNeighbours},
    {"read past shared memory", kNeighbours},
    {"write before shared memory", kNeighbours},
    {"blocks write to one place", kNeighbours},
    {"warp sum", kWarpSum},
    {"a thread misses a barrier", kWarpSum},
    {"lanes at different barriers", kWarpSum},
    {"lanes with different masks", kWarpSum},
    {"a warp writes and reads", kWarpSum},
    {"ring", kRing},
    {"barrier not made", kRing},
    {"not armed", kRing},
    {"armed for half", kRing},
    {"armed twice", kRing},
    {"no first cluster barrier", kRing},
    {"single barrier", kRing},
    {"no wait", kRing},
    {"wrong parity", kRing},
    {"not armed again", kRing},
    {"sent and not awaited", kRing},
    {"sent to nowhere", kRing},
    {"sent to a block that ended", kRing},
    {"wide ring", kWideRing},
    {"four to a place for two", kWideRing},
    {"sent past shared memory", kWideRing},
    {"geometry", kGeometry},
};

bool right(const Case& c) {
  const Kernel& k = c.kernel;
  std::vector<float> out(size_t(k.blocks * k.rows * kThreads), -1);
  const int error = launch(k.kernel, Params{c.name, out.data()}, k.blocks, k.rows, kThreads,
                           k.cluster, k.shared_bytes, nullptr);
  bool same = error == 0;
  for (size_t i = 0; i < out.size(); ++i)
    same &= out[i] == k.result(int(i) / kThreads, int(i) % kThreads);
  return same;
}

// Grids a GPU refuses, but for the last: prints the error of each.
void refusals() {
  constexpr Grid kGrids[] = {{0, 1, 64, 1, 0},
                             {1, 1, 1056, 1, 0},
                             {1, 1, 33, 1, 0},
                             {3, 1, 64, 2, 0},
                             {32, 1, 64, 32, 0},
                             {6, 1, 64, 3, 0},
                             {1, 0, 64, 1, 0},
                             {int64_t(1) << 31, 1, 64, 1, 0},
                             {1, 65536, 64, 1, 0},
                             {1, 1, 64, 1, -1},
                             {1, 1, 64, 1, 227 * 1024 + 1},
                             {2, 1, 64, 2, 0}};
  for (const Grid& g : kGrids) {
    float out[128];
    const Params params{"refusals", out};
    std::printf("%d ", launch(geometry, params, g.blocks, g.rows, g.threads, g.cluster,
                              g.shared_bytes, nullptr));
  }
  std::printf("\n");
}

}  // namespace
}  // namespace fusedrnn::cuda

int main(int argc, char** argv) {
  using namespace fusedrnn;
  if (argc > 3) shim::set_schedule({shim::Order(std::atoi(argv[2])), unsigned(std::atoi(argv[3]))});
  if (argc > 4) shim::set_shuffle_orders(false);
  if (argc > 1 && !std::strcmp(argv[1], "refusals")) return cuda::refusals(), 0;
  for (const cuda::Case& c : cuda::kCases) {
    if (argc < 2 || std::strcmp(c.name, argv[1]) != 0) continue;
    const bool right = cuda::right(c) && cuda::right(c);
    std::printf("%s\n", right ? "right" : "wrong");
    return !right;
  }
  std::printf("no case of this name\n");
  return 2;
}

// Stands before csrc/cuda/primitives.cuh on the include path: the same functions, made by the shim.
// The site each takes besides is where a kernel calls it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "shim.h"

#define FUSEDRNN_DEVICE inline
#define FUSEDRNN_KERNEL(threads) void

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace fusedrnn::cuda {

using Site = shim::Site;

inline unsigned char* shared_memory() { return shim::self->shared; }
inline int thread_index() { return shim::self->thread; }
inline int64_t block_index() { return shim::self->block; }
inline int grid_row() { return shim::self->row; }
inline int64_t grid_threads() { return shim::self->grid_threads; }
inline void block_sync(Site site = Site::current()) { shim::block_sync(site); }
inline float shuffle_xor(float value, int mask, Site site = Site::current()) {
  return shim::shuffle_xor(value, mask, site);
}

template <class T>
inline T load_if(bool wanted, const T* from) {
  return wanted ? *from : T{};
}
inline void prefetch_if(bool wanted, const float* from, Site site = Site::current()) {
  if (wanted) shim::prefetch(from, site);
}
inline int load_or(bool wanted, const int64_t* from, int otherwise) {
  return wanted ? int(*from) : otherwise;
}

inline int known_here(int x) { return x; }
inline float add_here(float a, float b) { return a + b; }
inline float choose(bool condition, float a, float b) { return condition ? a : b; }

// Too small to be normal: 0, going in and coming out.
inline float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
inline float exp2_fast(float x) { return flushed(std::exp2(flushed(x))); }
inline float reciprocal_fast(float x) { return flushed(1 / flushed(x)); }

constexpr bool kHasClusters = true;
inline int cluster_rank() { return shim::self->rank; }
inline void cluster_sync(Site site = Site::current()) { shim::cluster_sync(site); }
inline void barrier_init(uint64_t* barrier, Site site = Site::current()) {
  shim::barrier_init(barrier, site);
}
inline void barrier_arm(uint64_t* barrier, int bytes, Site site = Site::current()) {
  shim::barrier_arm(barrier, bytes, site);
}
inline void barrier_wait(uint64_t* barrier, int parity, Site site = Site::current()) {
  shim::barrier_wait(barrier, parity, site);
}
inline void send(float* to, int rank, float value, uint64_t* barrier, Site site = Site::current()) {
  shim::send(to, rank, &value, 1, barrier, site);
}
inline void send(float2* to, int rank, float2 value, uint64_t* barrier,
                 Site site = Site::current()) {
  shim::send(&to->x, rank, &value.x, 2, barrier, site);
}
inline void send(float4* to, int rank, float4 value, uint64_t* barrier,
                 Site site = Site::current()) {
  shim::send(&to->x, rank, &value.x, 4, barrier, site);
}

}  // namespace fusedrnn::cuda

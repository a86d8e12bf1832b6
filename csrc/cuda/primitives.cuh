// Everything the kernels ask of the hardware, in one place: what is specific to an architecture is
// here and nowhere else. The tests put a header of this name before it on the include path that
// gives the same functions on a CPU (tests/cuda/host), and so run the kernels' own source.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define FUSEDRNN_DEVICE __device__ __forceinline__
#define FUSEDRNN_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)

// What a device's assert() calls: says where and ends the kernel with cudaErrorAssert. Declared
// here since <cassert> leaves it out under NDEBUG.
extern "C" __device__ void __assertfail(const char* condition, const char* file, unsigned line,
                                        const char* function, size_t size) [[gnu::noreturn]];

namespace fusedrnn::cuda {

FUSEDRNN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}
FUSEDRNN_DEVICE int thread_index() { return int(threadIdx.x); }
FUSEDRNN_DEVICE int64_t block_index() { return blockIdx.x; }
// Volatile, since the compiler would read it again every step, 30 cycles each time.
FUSEDRNN_DEVICE int grid_row() {
  int row;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(row));
  return row;
}
FUSEDRNN_DEVICE int64_t grid_threads() { return int64_t(gridDim.x) * blockDim.x; }
FUSEDRNN_DEVICE void block_sync() { __syncthreads(); }
FUSEDRNN_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// What lies at `from`, or zeros, without touching it, where not `wanted`. Predicated, since behind
// a branch each load waits for the last; kept in place, neither .nc nor left to the compiler, since
// loads that move up past a barrier take registers that are still in use.
FUSEDRNN_DEVICE float load_if(bool wanted, const float* from) {
  float value;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %2, 0;\n"
      "mov.f32 %0, 0f00000000;\n"
      "@wanted ld.global.f32 %0, [%1];\n"
      "}"
      : "=f"(value)
      : "l"(from), "r"(int(wanted))
      : "memory");
  return value;
}
FUSEDRNN_DEVICE float4 load_if(bool wanted, const float4* from) {
  float4 value;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %5, 0;\n"
      "mov.f32 %0, 0f00000000;\n"
      "mov.f32 %1, 0f00000000;\n"
      "mov.f32 %2, 0f00000000;\n"
      "mov.f32 %3, 0f00000000;\n"
      "@wanted ld.global.v4.f32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "l"(from), "r"(int(wanted))
      : "memory");
  return value;
}
// Asks for what lies at `from` to be brought into the L2 cache, where `wanted`. Nothing waits for
// it.
FUSEDRNN_DEVICE void prefetch_if(bool wanted, const float* from) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %1, 0;\n"
      "@wanted prefetch.global.L2 [%0];\n"
      "}" ::"l"(from),
      "r"(int(wanted)));
}

// The lower half of what lies at `from`, or `otherwise` where not `wanted`. In a register of each
// thread: in one of the warp, into which the compiler would move it, it is waited for at once.
FUSEDRNN_DEVICE int load_or(bool wanted, const int64_t* from, int otherwise) {
  int value;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %2, 0;\n"
      "mov.s32 %0, %3;\n"
      "@wanted ld.global.s32 %0, [%1];\n"
      "}"
      : "=&r"(value)
      : "l"(from), "r"(int(wanted)), "r"(otherwise)
      : "memory");
  return value;
}

// x, of which the compiler knows nothing before this place: what follows from it is computed here.
FUSEDRNN_DEVICE int known_here(int x) {
  asm volatile("mov.s32 %0, %0;" : "+r"(x));
  return x;
}

// a + b, computed here: the compiler would move it on to where the sum is used.
FUSEDRNN_DEVICE float add_here(float a, float b) {
  float sum;
  asm volatile("add.f32 %0, %1, %2;" : "=f"(sum) : "f"(a), "f"(b));
  return sum;
}

// condition ? a : b with both computed: the compiler would branch around a polynomial.
FUSEDRNN_DEVICE float choose(bool condition, float a, float b) {
  float chosen;
  asm("{\n"
      ".reg .pred condition;\n"
      "setp.ne.s32 condition, %3, 0;\n"
      "selp.f32 %0, %1, %2, condition;\n"
      "}"
      : "=f"(chosen)
      : "f"(a), "f"(b), "r"(int(condition)));
  return chosen;
}

// 2^x and 1/x to 2 and 1 ulp; overflow and underflow go to inf and 0.
FUSEDRNN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FUSEDRNN_DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Clusters of blocks and their barriers: compute capability 9.0 and 10.0. Those of 12.0 lack the
// shared memory that these kernels are cut up for, and no plan takes them there. A barrier
// completes a phase once it has been armed with a number of bytes and these have arrived.
#if !defined(__CUDA_ARCH__) || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
constexpr bool kHasClusters = true;
FUSEDRNN_DEVICE uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}
FUSEDRNN_DEVICE uint32_t shared_address_in(const void* pointer, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(pointer)), "r"(rank));
  return address;
}
FUSEDRNN_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}
FUSEDRNN_DEVICE void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
// For one arrival a phase, barrier_arm's. The fence lets the other blocks see it.
FUSEDRNN_DEVICE void barrier_init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
FUSEDRNN_DEVICE void barrier_arm(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// Whether the phase of this parity has ended, after waiting for a while. The model asks for
// .acquire.cluster, which adds an L1 invalidation a step; the data lies in this block's own shared
// memory, and for that the default .acquire.cta suffices in practice (CUTLASS waits for multicast
// copies so).
FUSEDRNN_DEVICE bool barrier_try(uint64_t* barrier, int parity) {
  int done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.s32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done;
}
// Waits for it, but not for ever: blocks of a cluster run together and are a step apart at most, so
// that a wait lasts microseconds. An attempt takes 40 cycles or more, and all of them a second at
// the least; whoever waits for longer waits for a block that is lost. Attempts are counted, not
// time, which goes on where a kernel is interrupted or slowed down by a tool.
constexpr uint32_t kMostAttempts = 1u << 26;
FUSEDRNN_DEVICE void barrier_wait(uint64_t* barrier, int parity) {
  uint32_t left = kMostAttempts;
#pragma unroll 1
  while (!barrier_try(barrier, parity)) {
    if (--left == 0)
      __assertfail("the blocks of a cluster hear of each other", "fusedrnn", 0, "recurrence", 1);
  }
}
// Stores value where `to` lies in the shared memory of block `rank`, and counts its 4, 8 or 16
// bytes on that block's `barrier`; `to` is a multiple of as many.
FUSEDRNN_DEVICE void send(float* to, int rank, float value, uint64_t* barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
          shared_address_in(to, rank)),
      "r"(__float_as_uint(value)), "r"(shared_address_in(barrier, rank))
      : "memory");
}
FUSEDRNN_DEVICE void send(float2* to, int rank, float2 value, uint64_t* barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::
          "r"(shared_address_in(to, rank)),
      "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)),
      "r"(shared_address_in(barrier, rank))
      : "memory");
}
FUSEDRNN_DEVICE void send(float4* to, int rank, float4 value, uint64_t* barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(shared_address_in(to, rank)),
      "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)), "r"(__float_as_uint(value.z)),
      "r"(__float_as_uint(value.w)), "r"(shared_address_in(barrier, rank))
      : "memory");
}
#else
constexpr bool kHasClusters = false;  // the kernels that call these are empty then
FUSEDRNN_DEVICE int cluster_rank() { return 0; }
FUSEDRNN_DEVICE void cluster_sync() {}
FUSEDRNN_DEVICE void barrier_init(uint64_t*) {}
FUSEDRNN_DEVICE void barrier_arm(uint64_t*, int) {}
FUSEDRNN_DEVICE void barrier_wait(uint64_t*, int) {}
template <class T>
FUSEDRNN_DEVICE void send(T*, int, T, uint64_t*) {}
#endif

}  // namespace fusedrnn::cuda

// csrc/cuda/launch.cuh and device.cu with a runtime that counts (cuda_runtime.h here). Prints
// what is wrong; exit status 1 where something is.
#include "cuda/launch.cuh"

#include <cstdio>
#include <thread>
#include <vector>

#include "cuda/device.cu"

namespace {
struct Params {
  int value;
};
void first(Params) {}
void second(Params) {}

int wrong = 0;
void expect(const char* what, int64_t found, int64_t wanted) {
  if (found == wanted) return;
  std::printf("%s: %lld, not %lld\n", what, static_cast<long long>(found),
              static_cast<long long>(wanted));
  wrong = 1;
}

constexpr int64_t kKiB = 1024;
int start(void (*kernel)(Params), int cluster, int64_t shared_bytes) {
  return fusedrnn::cuda::launch(kernel, Params{1}, 4, 1, 32, cluster, shared_bytes, nullptr);
}
}  // namespace

int fusedrnn::cuda::resident_clusters_of(int) { return 1; }

int main() {
  start(first, 1, 48 * kKiB);
  expect("memory allowed for 48 KiB", runtime::memory_set, 0);

  runtime::refusal = cudaErrorInvalidValue;
  expect("a refused launch", start(first, 16, 64 * kKiB), cudaErrorInvalidValue);
  expect("launches after a refusal", runtime::launches, 1);

  runtime::memory_set = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int k = 0; k < 100; ++k) start(first, 16, 64 * kKiB);
    });
  }
  for (std::thread& each : threads) each.join();
  expect("launches", runtime::launches, 401);
  expect("memory allowed by four threads", runtime::memory_set, 1);
  expect("clusters allowed by four threads", runtime::clusters_allowed, 1);

  start(first, 16, 32 * kKiB);
  expect("memory allowed for less", runtime::memory_set, 1);
  start(first, 16, 96 * kKiB);
  expect("memory allowed for more", runtime::memory_set, 2);
  start(second, 1, 64 * kKiB);
  expect("memory allowed for another kernel", runtime::memory_set, 3);
  cudaSetDevice(1);
  start(second, 1, 64 * kKiB);
  expect("memory allowed on another device", runtime::memory_set, 4);

  expect("clusters", fusedrnn::cuda::resident_clusters(first, 32, 2, 64 * kKiB), 7);
  runtime::ptx = 80;
  expect("clusters of PTX for 8.0", fusedrnn::cuda::resident_clusters(first, 32, 2, 64 * kKiB), 0);

  int error = -1;
  runtime::kilohertz = 1980000;
  expect("MHz", int64_t(fusedrnn::cuda::device(0, &error).clock_ghz * 1000 + 0.5), 1980);
  runtime::kilohertz = 0;
  expect("MHz of no clock", int64_t(fusedrnn::cuda::device(0, &error).clock_ghz * 1000), 1000);
  expect("error", error, 0);
  expect("the current device after that", runtime::current, 1);
  return wrong;
}

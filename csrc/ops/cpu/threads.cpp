// The threads that CPU kernels get: those of torch's own pool.
#include <ATen/Parallel.h>
#include <pthread.h>

#include <algorithm>

#include "ops/layer.h"
#include "ops/openmp.h"

namespace fusedrnn::ops {

cpu::Team team() {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return {[](int wanted, void (*body)(void*, int, int), void* context) {
            in_parallel([=] {
              const int n = std::min(wanted, omp_get_num_threads()), id = omp_get_thread_num();
              if (id < n) body(context, id, n);
            });
          },
          threads};
}

namespace {

// GNU's OpenMP hangs in a forked child whose parent had used it: the child believes in threads that
// only the parent has. Without threads at the fork, each makes its own when it next needs some.
[[maybe_unused]] const int kForks = pthread_atfork([] { dissolve_threads(); }, nullptr, nullptr);

}  // namespace

}  // namespace fusedrnn::ops

// torch's own OpenMP, GNU's, by whatever compiler this is built.
#pragma once

#ifdef __clang__
// Clang's -fopenmp calls LLVM's runtime, which would keep a second pool of threads beside torch's.
// So Clang compiles without it, and these are libgomp's functions as libgomp declares them.
extern "C" {
void GOMP_parallel(void (*body)(void*), void* context, unsigned threads, unsigned flags);
int omp_get_num_threads(void);
int omp_get_thread_num(void);
int omp_pause_resource_all(int kind);
}
#else
#include <omp.h>
#endif

namespace fusedrnn::ops {

// body() on every thread of torch's pool.
template <class Body>
void in_parallel(const Body& body) {
#ifdef __clang__
  constexpr unsigned kAllThreads = 0;
  GOMP_parallel([](void* context) { (*static_cast<const Body*>(context))(); },
                const_cast<Body*>(&body), kAllThreads, 0);
#else
#pragma omp parallel
  body();
#endif
}

// Ends the threads; the next parallel region makes new ones.
inline void dissolve_threads() {
#ifdef __clang__
  constexpr int kSoft = 1;
  omp_pause_resource_all(kSoft);
#else
  omp_pause_resource_all(omp_pause_soft);
#endif
}

}  // namespace fusedrnn::ops

// Stands before csrc/cuda/launch.cuh on the include path: starts a kernel on the shim, and returns
// when it has ended.
#pragma once

#include "cuda/params.h"
#include "shim.h"

namespace fusedrnn::cuda {

template <class Params>
int launch(void (*kernel)(Params), const Params& params, int64_t blocks, int rows, int threads,
           int cluster, int64_t shared_bytes, void* /*stream*/) {
  static_assert(sizeof(Params) <= 4096, "more than a kernel's parameters may take");
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  };
  const Call call{kernel, params};
  const auto body = [](const void* call) {
    static_cast<const Call*>(call)->kernel(static_cast<const Call*>(call)->params);
  };
  return shim::run({blocks, rows, threads, cluster, shared_bytes}, body, &call);
}

template <class Params>
int resident_clusters(void (*)(Params), int /*threads*/, int /*cluster*/,
                      int64_t /*shared_bytes*/) {
  return 1;
}

}  // namespace fusedrnn::cuda

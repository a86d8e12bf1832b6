// Whether a persistent kernel computes on this GPU what it should. The first plan in a process that
// names a tile for a pass has it run a small problem beside the stepwise path; one that is wrong or
// does not start is taken out with a warning, and the next candidate serves.
// FUSEDRNN_CUDA_CHECK=0 switches the check off. A tile that FUSEDRNN_CUDA_TILE forces is neither
// checked nor replaced, nor is one that `fusedrnn tune` has checked.
#pragma once

#include <functional>

#include "ops/cuda/glue.h"

namespace fusedrnn::ops {

// A plan that `propose` makes by what is known of the device, and makes again as often as the
// kernel it names turns out wrong. While the stream is captured kernels are taken unchecked.
cuda::Plan trusted(cuda::Pass pass, const Call& call, const Scope& scope,
                   const std::function<cuda::Plan()>& propose);

// A persistent kernel did not start: takes it out, so that the next plan names another. Raises
// where that does not help: the tile is forced, or the GPU is in no state to start anything.
void take_out(int error, cuda::Pass pass, const Problem& problem, const cuda::Plan& plan,
              const Scope& scope);

}  // namespace fusedrnn::ops

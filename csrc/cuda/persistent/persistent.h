// The persistent kernels as the dispatcher sees them: one function per family of cells and pass,
// each in a source of its own in csrc/cuda/instances.
#pragma once

#include "cuda/params.h"
#include "cuda/tiles.h"

namespace fusedrnn::cuda {

constexpr int kNoSuchTile = 1;  // cudaErrorInvalidValue

template <Cell kFamily>
int forward_of(const Forward& params, const Plan& plan, void* stream);
template <Cell kFamily>
int backward_of(const Backward& params, const Plan& plan, void* stream);

// How many clusters of `size` blocks run at once. The LSTM's forward kernels stand for all: each
// kernel fills a multiprocessor with one block.
int resident_clusters_of(int size);

}  // namespace fusedrnn::cuda

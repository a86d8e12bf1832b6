// The persistent kernels as the dispatcher sees them: one function per cell and pass.
#pragma once

#include "cuda/tiles.h"

namespace fusedrnn::cuda {

constexpr int kNoSuchTile = 1;  // cudaErrorInvalidValue

int forward_lstm(const Forward& params, const Plan& plan, void* stream);
int forward_gru(const Forward& params, const Plan& plan, void* stream);
int forward_rnn(const Forward& params, const Plan& plan, void* stream);
int backward_lstm(const Backward& params, const Plan& plan, void* stream);
int backward_gru(const Backward& params, const Plan& plan, void* stream);
int backward_rnn(const Backward& params, const Plan& plan, void* stream);

// How many clusters of `size` blocks run at once. The LSTM's forward kernels stand for all: each
// kernel fills a multiprocessor with one block.
int resident_lstm_clusters(int size);

}  // namespace fusedrnn::cuda

// A layer whose rows end early or are cut, run as packed rows: the call that the kernels see, made
// of the one that was asked for, and its results put where those of the latter belong. For every
// device.
#pragma once

#include <functional>

#include "ops/check.h"

namespace fusedrnn::ops {

// By `run` as it is, where nothing is cut.
LayerResult run_cut(const Call& call, const std::function<LayerResult(const Call&)>& run);
// Fills the call's results.
void run_cut(const BackwardCall& call, const std::function<void(const BackwardCall&)>& run);

}  // namespace fusedrnn::ops

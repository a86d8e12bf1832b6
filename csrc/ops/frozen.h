// Frozen stacks on tensors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "frozen/stream.h"
#include "ops/layer.h"

namespace fusedrnn::ops {

// The arguments of a frozen stack: `weights` as torch has them, `scales` of int8 in the order of
// W_ih, W_hh of each direction, and empty otherwise.
struct FrozenWeights {
  std::string mode;
  int64_t L, D;
  bool has_biases, projected;
  std::vector<Tensor> weights, scales;
};
std::shared_ptr<const frozen::Stack> freeze(const FrozenWeights& given);

// A graph that torch.compile makes holds no object of ours, so there a stack goes by a number,
// which no other one in this process ever has. `stack_of` throws where the stack is gone.
int64_t number_of(const std::shared_ptr<const frozen::Stack>& stack);
std::shared_ptr<const frozen::Stack> stack_of(int64_t number);

// W_ih (or W_hh) of a direction as it was given.
Tensor unpacked(const frozen::Stack& stack, int64_t layer, int64_t direction, bool recurrent);

// One step without a call's views and results: input [B, I] in the dtype that is computed in. h,
// h_n and c_n, the first [B, P] of the top layer.
std::tuple<Tensor, Tensor, OptionalTensor> step_frozen(
    const std::shared_ptr<const frozen::Stack>& stack, const Tensor& input,
    const OptionalTensor& hx, const OptionalTensor& cx);

}  // namespace fusedrnn::ops

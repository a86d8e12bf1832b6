// layer_backward for torch.autograd.grad(..., is_grads_batched=True), which still runs on torch's
// first vmap, not on torch.func's (whose rules are in fusedrnn/transforms.py): a call for each
// gradient, because as a rule only the gradients are mapped, and the weights' are wanted apart.
#if __has_include(<ATen/LegacyBatchedTensorImpl.h>)
#include <ATen/LegacyBatchedTensorImpl.h>
#include <ATen/ops/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/layer.h"

namespace fusedrnn::ops {
namespace {

// The innermost mapped dimension of a tensor; null where none is mapped.
const at::BatchDim* innermost(const Tensor& tensor) {
  const auto* batched = tensor.defined() ? at::maybeGetBatchedImpl(tensor) : nullptr;
  return batched ? &batched->bdims().back() : nullptr;
}

// One argument of each call: slices where the tensor is mapped at this level, else itself.
class Argument {
 public:
  Argument(const Tensor& tensor, int64_t level) : whole_(tensor) {
    const auto* dim = innermost(tensor);
    if (!dim || dim->level() != level) return;
    const auto* batched = at::maybeGetBatchedImpl(tensor);
    at::BatchDims outer(batched->bdims().begin(), batched->bdims().end() - 1);
    for (at::BatchDim& other : outer) {
      if (other.dim() > dim->dim()) other = at::BatchDim(other.level(), other.dim() - 1);
    }
    for (const Tensor& slice : batched->value().unbind(dim->dim())) {
      slices_.push_back(outer.empty() ? slice : at::makeBatched(slice, outer));
    }
  }

  size_t size() const { return slices_.size(); }
  const Tensor& at(size_t i) const { return slices_.empty() ? whole_ : slices_[i]; }

 private:
  Tensor whole_;
  std::vector<Tensor> slices_;
};

std::vector<Tensor> layer_backward_batched(const OptionalTensor& grad_output,
                                           const OptionalTensor& grad_h_n,
                                           const OptionalTensor& grad_c_n, const Tensor& input,
                                           const OptionalTensor& batch_sizes,
                                           const OptionalTensor& hx, const OptionalTensor& cx,
                                           at::TensorList weights, const Tensor& output,
                                           const Tensor& reserve, c10::string_view mode,
                                           bool has_biases, const c10::List<bool>& needs) {
  std::vector<Tensor> tensors{grad_output.value_or(Tensor()),
                              grad_h_n.value_or(Tensor()),
                              grad_c_n.value_or(Tensor()),
                              input,
                              hx.value_or(Tensor()),
                              cx.value_or(Tensor()),
                              output,
                              reserve};
  const size_t first_weight = tensors.size();
  tensors.insert(tensors.end(), weights.begin(), weights.end());
  int64_t level = 0;
  for (const Tensor& tensor : tensors) {
    if (const auto* dim = innermost(tensor)) level = std::max(level, dim->level());
  }
  std::vector<Argument> arguments;
  size_t count = 0;
  for (const Tensor& tensor : tensors) {
    arguments.emplace_back(tensor, level);
    count = std::max(count, arguments.back().size());
  }

  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::VmapMode);
  std::vector<std::vector<Tensor>> by_gradient;
  for (size_t i = 0; i < count; ++i) {
    auto at = [&](size_t k) { return arguments[k].at(i); };
    auto maybe = [&](size_t k) { return at(k).defined() ? OptionalTensor(at(k)) : std::nullopt; };
    std::vector<Tensor> w;
    for (size_t k = first_weight; k < arguments.size(); ++k) w.push_back(at(k));
    const auto found = layer_backward(maybe(0), maybe(1), maybe(2), at(3), batch_sizes, maybe(4),
                                      maybe(5), w, at(6), at(7), mode, has_biases, needs);
    by_gradient.resize(found.size());
    for (size_t k = 0; k < found.size(); ++k) by_gradient[k].push_back(found[k]);
  }
  std::vector<Tensor> results;
  for (const auto& each : by_gradient) {
    results.push_back(at::addBatchDim(at::stack(each), level, 0));
  }
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, Batched, m) { m.impl("layer_backward", layer_backward_batched); }

}  // namespace fusedrnn::ops
#endif

// layer_backward under torch.autograd.grad(..., is_grads_batched=True). That still runs on torch's
// first vmap, not on torch.func's, whose rules are in fusedrnn/_ops/vmap.py. It makes a call for
// each gradient: as a rule only the gradients are mapped, and each call has weight gradients of its
// own.
#if __has_include(<ATen/LegacyBatchedTensorImpl.h>)
#include <ATen/LegacyBatchedTensorImpl.h>
#include <ATen/ops/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/schema.h"

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

// Tensors that may be mapped, in this order; the weights follow.
enum Tensors : size_t {
  kGradOutput,
  kGradH,
  kGradC,
  kInput,
  kHx,
  kCx,
  kGradStates,
  kResetH,
  kResetC,
  kOutput,
  kReserve,
  kFirstWeight
};

std::vector<Tensor> tensors_of(const Operands& o, const Cotangents& c) {
  std::vector<Tensor> tensors{c.grad_output.value_or(Tensor()),
                              c.grad_h_n.value_or(Tensor()),
                              c.grad_c_n.value_or(Tensor()),
                              o.input,
                              o.hx.value_or(Tensor()),
                              o.cx.value_or(Tensor()),
                              c.grad_states.value_or(Tensor()),
                              o.course.reset_h.value_or(Tensor()),
                              o.course.reset_c.value_or(Tensor()),
                              c.output,
                              c.reserve};
  tensors.insert(tensors.end(), o.weights.all.begin(), o.weights.all.end());
  return tensors;
}

// The call with its tensors replaced.
std::vector<Tensor> call_with(const std::vector<Tensor>& tensors, const Operands& o,
                              const Cotangents& c) {
  const auto maybe = [&](Tensors k) {
    return tensors[k].defined() ? OptionalTensor(tensors[k]) : std::nullopt;
  };
  const OptionalTensor dy = maybe(kGradOutput), dh_n = maybe(kGradH), dc_n = maybe(kGradC),
                       hx = maybe(kHx), cx = maybe(kCx);
  WeightList weights = o.weights;
  weights.all = at::TensorList(tensors).slice(kFirstWeight);
  Course course = o.course;
  course.reset_h = maybe(kResetH);
  course.reset_c = maybe(kResetC);
  return layer_backward(
      {tensors[kInput], o.batch_sizes, hx, cx, weights, o.cell, o.train, course},
      {dy, dh_n, dc_n, tensors[kOutput], tensors[kReserve], c.needs, maybe(kGradStates)});
}

std::vector<Tensor> layer_backward_batched(const Operands& o, const Cotangents& c) {
  const std::vector<Tensor> tensors = tensors_of(o, c);
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
    std::vector<Tensor> of_call;
    for (const Argument& argument : arguments) of_call.push_back(argument.at(i));
    const auto found = call_with(of_call, o, c);
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

TORCH_LIBRARY_IMPL(fusedrnn, Batched, m) {
  m.impl("layer_backward", layer_backward_op<layer_backward_batched>);
}

}  // namespace fusedrnn::ops
#endif

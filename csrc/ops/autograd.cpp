// The layer's autograd formula. It calls operators only, so that a tracer can follow it, and it is
// C++ because its host time is part of every small call.
#include <ATen/FuncTorchTLS.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "ops/check.h"
#include "ops/cudnn.h"
#include "ops/schema.h"

namespace fusedrnn::ops {

SecondBackward& second_backward() {
  static auto* const hook =
      new SecondBackward;  // outlives the interpreter, which owns the function
  return *hook;
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// Without kernels for a device the modules take torch.nn's path and never come here.
void check_kernels(const Tensor& input) {
  TORCH_CHECK_NOT_IMPLEMENTED(has_kernels(input), cuda_missing().reason,
                              "; so this operator takes no tensors on ", input.device());
}

bool wants_gradient(const Tensor& tensor) { return tensor.requires_grad(); }

bool has_tangent(const Tensor& tensor) { return tensor._fw_grad(/*level=*/0).defined(); }

// Hides torch.func's transforms from torch's Function until forward begins, where admit() puts them
// back. Function refuses to run inside them, because few formulas are fit for it: a kernel for
// autograd sees the tensors of one level of grad() only, and the operators that it calls go on to
// the next level. Ours calls operators only, which is all that this takes.
class Admission {
 public:
  Admission() {
    auto& state = at::functorch::functorchTLSAccessor();
    if (!state) return;
    try {
      state->checkSupportsCppAutogradFunction();
    } catch (const c10::Error&) {
      hidden_ = std::move(state);
    }
  }
  ~Admission() { admit(); }
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Whether there are any. Then forward must keep gradients enabled, for the levels below.
  static bool admit() {
    if (!hidden_) return false;
    at::functorch::functorchTLSAccessor() = std::move(hidden_);
    return true;
  }

 private:
  static thread_local std::unique_ptr<at::functorch::FuncTorchTLSBase> hidden_;
};

thread_local std::unique_ptr<at::functorch::FuncTorchTLSBase> Admission::hidden_;

// Cell and biases, which backward needs beside the tensors.
void save(AutogradContext* ctx, const Operands& o) {
  ctx->saved_data["cell"] = int64_t(o.cell);
  ctx->saved_data["has_biases"] = o.weights.has_biases;
}
Cell saved_cell(AutogradContext* ctx) { return Cell(ctx->saved_data["cell"].toInt()); }
bool saved_has_biases(AutogradContext* ctx) { return ctx->saved_data["has_biases"].toBool(); }

// The gradients of a layer, computed by the kernels. Their own gradients are those of the
// definition's backward pass. They are computed only when asked for: torch.func asks for
// differentiable gradients always, and rarely differentiates them.
class LayerBackwardFunction : public torch::autograd::Function<LayerBackwardFunction> {
 public:
  // As SecondBackward takes them; undefined where one was not given.
  static std::vector<Tensor> differentiable(const Operands& o, const Cotangents& c) {
    std::vector<Tensor> tensors;
    for (const auto* slope : {&c.grad_output, &c.grad_h_n, &c.grad_c_n})
      tensors.push_back(slope->value_or(Tensor()));
    tensors.push_back(o.input);
    for (const auto* state : {&o.hx, &o.cx}) tensors.push_back(state->value_or(Tensor()));
    tensors.insert(tensors.end(), o.weights.all.begin(), o.weights.all.end());
    for (const auto* last : {&c.grad_states, &o.course.reset_h, &o.course.reset_c})
      tensors.push_back(last->value_or(Tensor()));
    return tensors;
  }
  // Saved after those.
  static constexpr size_t kRows = 3;

  // `given`: those of the differentiable tensors that are defined; each gets an edge.
  static variable_list forward(AutogradContext* ctx, [[maybe_unused]] at::TensorList given,
                               const Operands* o, const Cotangents* c) {
    const c10::AutoGradMode for_levels_below(Admission::admit());
    std::vector<Tensor> saved = differentiable(*o, *c);
    for (const auto* rows : {&o->batch_sizes, &o->course.lengths, &o->course.resets})
      saved.push_back(rows->value_or(Tensor()));
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowADInplaceOrView guard;
    std::vector<Tensor> gradients = layer_backward(*o, *c);
    save(ctx, *o);
    ctx->saved_data["needs"] = c->needs;
    return gradients;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    std::vector<Tensor> saved = ctx->get_saved_variables();
    std::vector<OptionalTensor> rows;
    for (size_t i = saved.size() - kRows; i < saved.size(); ++i) rows.push_back(optional(saved[i]));
    saved.resize(saved.size() - kRows);
    std::vector<bool> wanted;
    size_t edges = 0;
    bool any = false;
    for (const Tensor& tensor : saved) {
      wanted.push_back(tensor.defined() && ctx->needs_input_grad(edges));
      edges += tensor.defined();
      any = any || wanted.back();
    }
    variable_list result(edges + 2);  // forward's other two arguments have no gradient
    const bool none = std::none_of(grads.begin(), grads.end(), [](auto& g) { return g.defined(); });
    if (!any || none) return result;
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const std::vector<Tensor> found =
        second_backward()(grads, saved, rows, spec(saved_cell(ctx)).name, saved_has_biases(ctx),
                          {needs.begin(), needs.end()}, wanted);
    size_t edge = 0, next = 0;
    for (size_t i = 0; i < saved.size(); ++i) {
      if (wanted[i]) result[edge] = found[next++];
      edge += saved[i].defined();
    }
    return result;
  }
};

std::vector<Tensor> layer_backward_autograd(const Operands& o, const Cotangents& c) {
  TORCH_CHECK_TYPE(c.output.defined() && c.reserve.defined(),
                   "fusedrnn: output and reserve must be Tensors, got None");
  check_kernels(o.input);
  check_devices(o);
  // A reserve of one dimension is what a forward pass by the definition leaves.
  if (c.reserve.dim() == 1 || o.any(has_tangent) || c.any(has_tangent)) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    return layer_backward_reference(o, c);
  }
  if (at::GradMode::is_enabled() && (o.any(wants_gradient) || c.any(wants_gradient))) {
    std::vector<Tensor> given = LayerBackwardFunction::differentiable(o, c);
    const auto absent = [](const Tensor& tensor) { return !tensor.defined(); };
    given.erase(std::remove_if(given.begin(), given.end(), absent), given.end());
    const Admission admission;
    return LayerBackwardFunction::apply(at::TensorList(given), &o, &c);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return layer_backward(o, c);
}

// A tensor without elements that counts the changes of `tensor`. Kept apart from its data, which a
// hook on saved tensors may move or free.
Tensor changes_of(const Tensor& tensor) {
  Tensor counter = at::empty({0}, at::TensorOptions(at::kCPU));
  torch::autograd::impl::set_version_counter(counter,
                                             torch::autograd::impl::version_counter(tensor));
  return counter;
}

// Backward reads the output. Code written for torch.nn's RNN and GRU may have changed it by then,
// so it is saved without autograd's check, and computed once more if it was changed.
class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  // What is saved, in this order; the weights follow.
  enum Saved : size_t {
    kInput,
    kHx,
    kCx,
    kResetH,
    kResetC,
    kBatchSizes,
    kLengths,
    kResets,
    kOutput,
    kReserve,
    kFirstWeight
  };

  // Takes the tensors of `o` once more because torch finds edges among arguments only. `rest`: the
  // weights, and those of reset_h and reset_c that were given.
  static variable_list forward(AutogradContext* ctx, [[maybe_unused]] const Tensor& input,
                               [[maybe_unused]] const OptionalTensor& hx,
                               [[maybe_unused]] const OptionalTensor& cx,
                               [[maybe_unused]] at::TensorList rest, const Operands* o,
                               LayerResult* all) {
    const c10::AutoGradMode for_levels_below(Admission::admit());
    at::AutoDispatchBelowADInplaceOrView guard;
    *all = layer(*o);
    const auto& [output, h_n, c_n, reserve, states] = *all;
    std::vector<Tensor> saved{o->input};
    for (const auto* maybe : {&o->hx, &o->cx, &o->course.reset_h, &o->course.reset_c,
                              &o->batch_sizes, &o->course.lengths, &o->course.resets})
      saved.push_back(maybe->value_or(Tensor()));
    saved.insert(saved.end(), {output.variable_data(), reserve});
    saved.insert(saved.end(), o->weights.all.begin(), o->weights.all.end());
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    save(ctx, *o);
    ctx->saved_data["every"] = o->course.every;
    ctx->saved_data["bfloat16"] = o->course.bfloat16;
    ctx->saved_data["changes"] = changes_of(output);
    ctx->saved_data["unchanged"] = int64_t(output._version());
    // Only what has a gradient: compiled autograd cannot do with outputs marked to have none.
    if (!spec(o->cell).has_c) return {output, h_n};
    return o->course.states ? variable_list{output, h_n, c_n, states}
                            : variable_list{output, h_n, c_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::TensorList weights(saved.data() + kFirstWeight, saved.size() - kFirstWeight);
    // Input, hx, cx, the weights, reset_h and reset_c.
    const size_t inputs = 3 + weights.size() + 2;
    c10::List<bool> needs;
    size_t edge = 0;  // a state that was not given has no edge
    for (size_t i = 0; i < inputs; ++i) {
      const bool given = i < 3            ? saved[i].defined()
                         : i < inputs - 2 ? true
                                          : saved[kResetH + i - (inputs - 2)].defined();
      needs.push_back(given && ctx->needs_input_grad(edge++));
    }
    const size_t resets = saved[kResetH].defined() + saved[kResetC].defined();
    variable_list result(inputs - 2 + resets + 2);  // forward's other two have no gradient
    const auto slope = [&](size_t i) {
      return i < grads.size() ? optional(grads[i]) : std::nullopt;
    };
    const OptionalTensor dy = slope(0), dh_n = slope(1), dc_n = slope(2), dstates = slope(3);
    if (!dy && !dh_n && !dc_n && !dstates) return result;

    const OptionalTensor batch_sizes = optional(saved[kBatchSizes]), hx = optional(saved[kHx]),
                         cx = optional(saved[kCx]);
    const Cell cell = saved_cell(ctx);
    const Course course{optional(saved[kLengths]),
                        optional(saved[kResets]),
                        optional(saved[kResetH]),
                        optional(saved[kResetC]),
                        /*states=*/false,
                        ctx->saved_data["every"].toInt(),
                        ctx->saved_data["bfloat16"].toBool()};
    const Operands o{
        saved[kInput],  batch_sizes, hx, cx, weights_of_layer(cell, saved_has_biases(ctx), weights),
        cell,
        /*train=*/true, course};
    Tensor output = saved[kOutput];
    if (ctx->saved_data["changes"].toTensor()._version() != ctx->saved_data["unchanged"].toInt()) {
      at::AutoDispatchBelowADInplaceOrView guard;
      output = std::get<0>(layer(o));
    }
    const auto gradients =
        layer_backward(o, {dy, dh_n, dc_n, output, saved[kReserve], needs, dstates});
    size_t next = 0, place = 0;
    for (size_t i = 0; i < inputs; ++i) {
      if (needs[i]) result[place] = gradients[next++];
      // Of the last two, those that were not given were no arguments.
      place += i < inputs - 2 || saved[kResetH + i - (inputs - 2)].defined();
    }
    return result;
  }
};

LayerResult layer_autograd(const Operands& o) {
  check_kernels(o.input);
  check_devices(o);
  // The definition can do what the kernels cannot: forward-mode AD and complex numbers.
  if (o.input.is_complex() || o.any(has_tangent)) {
    auto [y, h_n, c_n, states] = layer_reference(o);
    const Tensor nothing = at::empty({0}, o.input.options());
    return {y, h_n, c_n, nothing, o.course.states ? states : nothing};
  }
  if (!at::GradMode::is_enabled() || !o.any(wants_gradient)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return layer(o);
  }
  const Admission admission;
  Operands training = o;
  training.train = true;
  LayerResult all;
  std::vector<Tensor> with_resets;
  at::TensorList rest = o.weights.all;
  for (const auto* reset : {&o.course.reset_h, &o.course.reset_c}) {
    if (!*reset) continue;
    if (with_resets.empty()) with_resets.assign(rest.begin(), rest.end());
    with_resets.push_back(**reset);
    rest = with_resets;
  }
  const variable_list result =
      LayerFunction::apply(o.input, o.hx, o.cx, rest, &std::as_const(training), &all);
  auto& [output, h_n, c_n, reserve, states] = all;
  return {result[0], result[1], result.size() > 2 ? result[2] : c_n, reserve,
          result.size() > 3 ? result[3] : states};
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, Autograd, m) {
  m.impl("layer", layer_op<layer_autograd>);
  m.impl("layer_backward", layer_backward_op<layer_backward_autograd>);
}

}  // namespace fusedrnn::ops

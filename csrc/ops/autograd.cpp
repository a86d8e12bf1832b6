// Schemas, and the layer's autograd formula. It calls operators only, so that a tracer can follow
// it, and stands in C++ because its host time is part of every small call.
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "ops/by_torch.h"
#include "ops/check.h"

namespace fusedrnn::ops {

LayerResult layer(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                  const OptionalTensor& cx, at::TensorList weights, c10::string_view mode,
                  bool has_biases, bool train) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fusedrnn::layer", "")
                             .typed<decltype(layer)>();
  return op.call(input, batch_sizes, hx, cx, weights, mode, has_biases, train);
}

std::vector<Tensor> layer_backward(const OptionalTensor& grad_output,
                                   const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                                   const Tensor& input, const OptionalTensor& batch_sizes,
                                   const OptionalTensor& hx, const OptionalTensor& cx,
                                   at::TensorList weights, const Tensor& output,
                                   const Tensor& reserve, c10::string_view mode, bool has_biases,
                                   const c10::List<bool>& needs) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fusedrnn::layer_backward", "")
                             .typed<decltype(layer_backward)>();
  return op.call(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                 reserve, mode, has_biases, needs);
}

SecondBackward& second_backward() {
  static auto* const hook =
      new SecondBackward;  // outlives the interpreter, which owns the function
  return *hook;
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// Whether `condition` holds for any of the tensors that are there.
template <class Condition>
bool any_of(std::initializer_list<const OptionalTensor*> states, at::TensorList weights,
            const Condition& condition) {
  for (const OptionalTensor* state : states) {
    if (*state && (*state)->defined() && condition(**state)) return true;
  }
  for (const Tensor& weight : weights) {
    if (condition(weight)) return true;
  }
  return false;
}

// The modules take torch.nn's path where there are none.
void check_kernels(const Tensor& input) {
  TORCH_CHECK_NOT_IMPLEMENTED(has_kernels(input), cuda_missing().reason,
                              "; so this operator takes no tensors on ", input.device());
}

bool wants_gradient(const Tensor& tensor) { return tensor.requires_grad(); }

bool has_tangent(const Tensor& tensor) { return tensor._fw_grad(/*level=*/0).defined(); }

// torch's Function refuses to run inside torch.func's transforms, because few know what happens
// there: a kernel for autograd sees the tensors of one level of grad(), and the operators that it
// calls go on to the next level. Ours call operators only, which is all that this takes. So the
// transforms are out of sight from here until forward begins, where admit() puts them back.
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

// The gradients of layer, by the kernels. Differentiated in turn, they are what the definition's
// backward pass computes; and what is wanted then is only computed then, because torch.func asks
// for differentiable gradients always.
class LayerBackwardFunction : public torch::autograd::Function<LayerBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& grad_output,
                               const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                               const Tensor& input, const OptionalTensor& hx,
                               const OptionalTensor& cx, at::TensorList weights,
                               const OptionalTensor& batch_sizes, const Tensor& output,
                               const Tensor& reserve, std::string mode, bool has_biases,
                               c10::List<bool> needs) {
    const c10::AutoGradMode for_levels_below(Admission::admit());
    std::vector<Tensor> saved;
    for (const auto* t : {&grad_output, &grad_h_n, &grad_c_n})
      saved.push_back(t->value_or(Tensor()));
    saved.push_back(input);
    for (const auto* t : {&hx, &cx}) saved.push_back(t->value_or(Tensor()));
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.push_back(batch_sizes.value_or(Tensor()));
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    at::AutoDispatchBelowADInplaceOrView guard;
    std::vector<Tensor> gradients =
        layer_backward(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                       reserve, mode, has_biases, needs);
    ctx->saved_data["mode"] = std::move(mode);
    ctx->saved_data["has_biases"] = has_biases;
    ctx->saved_data["needs"] = std::move(needs);
    return gradients;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    std::vector<Tensor> saved = ctx->get_saved_variables();
    const OptionalTensor batch_sizes = optional(saved.back());
    saved.pop_back();
    variable_list result(saved.size() + 6);
    std::vector<bool> wanted;
    size_t edge = 0;  // a tensor that was not given has no edge
    bool any = false;
    for (const Tensor& tensor : saved) {
      wanted.push_back(tensor.defined() && ctx->needs_input_grad(edge++));
      any = any || wanted.back();
    }
    const bool none = std::none_of(grads.begin(), grads.end(), [](auto& g) { return g.defined(); });
    if (!any || none) return result;
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const std::vector<Tensor> found = second_backward()(
        grads, saved, batch_sizes, ctx->saved_data["mode"].toStringRef(),
        ctx->saved_data["has_biases"].toBool(), {needs.begin(), needs.end()}, wanted);
    size_t next = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (wanted[i]) result[i] = found[next++];
    }
    return result;
  }
};

std::vector<Tensor> layer_backward_autograd(const OptionalTensor& grad_output,
                                            const OptionalTensor& grad_h_n,
                                            const OptionalTensor& grad_c_n, const Tensor& input,
                                            const OptionalTensor& batch_sizes,
                                            const OptionalTensor& hx, const OptionalTensor& cx,
                                            at::TensorList weights, const Tensor& output,
                                            const Tensor& reserve, c10::string_view mode,
                                            bool has_biases, const c10::List<bool>& needs) {
  TORCH_CHECK_TYPE(output.defined() && reserve.defined(),
                   "fusedrnn: output and reserve must be Tensors, got None");
  check_kernels(input);
  check_devices(input, hx, cx, weights);
  const OptionalTensor x = input;
  const auto operands = {&grad_output, &grad_h_n, &grad_c_n, &x, &hx, &cx};
  // A reserve of one dimension is what is left of a forward pass by the definition.
  if (reserve.dim() == 1 || any_of(operands, weights, has_tangent)) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("fusedrnn::layer_backward_reference", "")
                               .typed<decltype(layer_backward)>();
    return op.call(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                   reserve, mode, has_biases, needs);
  }
  if (at::GradMode::is_enabled() && any_of(operands, weights, wants_gradient)) {
    const Admission admission;
    return LayerBackwardFunction::apply(grad_output, grad_h_n, grad_c_n, input, hx, cx, weights,
                                        batch_sizes, output, reserve, std::string(mode), has_biases,
                                        needs);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return layer_backward(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights,
                        output, reserve, mode, has_biases, needs);
}

// A tensor without elements that counts the changes of `tensor`. Kept apart from its data, which a
// hook on saved tensors may move or free.
Tensor changes_of(const Tensor& tensor) {
  Tensor counter = at::empty({0}, at::TensorOptions(at::kCPU));
  torch::autograd::impl::set_version_counter(counter,
                                             torch::autograd::impl::version_counter(tensor));
  return counter;
}

// Backward reads the output, and code written for torch.nn's RNN and GRU may have changed it by
// then. So it is saved without autograd's check, and computed once more where it was changed.
class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& hx,
                               const OptionalTensor& cx, at::TensorList weights,
                               const OptionalTensor& batch_sizes, std::string mode, bool has_biases,
                               LayerResult* all) {
    const c10::AutoGradMode for_levels_below(Admission::admit());
    at::AutoDispatchBelowADInplaceOrView guard;
    *all = layer(input, batch_sizes, hx, cx, weights, mode, has_biases, true);
    const auto& [output, h_n, c_n, reserve] = *all;
    std::vector<Tensor> saved{input,
                              hx.value_or(Tensor()),
                              cx.value_or(Tensor()),
                              batch_sizes.value_or(Tensor()),
                              output.variable_data(),
                              reserve};
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    const bool lstm = mode == "LSTM";
    ctx->set_materialize_grads(false);
    ctx->saved_data["mode"] = std::move(mode);
    ctx->saved_data["has_biases"] = has_biases;
    ctx->saved_data["changes"] = changes_of(output);
    ctx->saved_data["unchanged"] = int64_t(output._version());
    // Only what has a gradient: compiled autograd cannot do with outputs marked to have none.
    return lstm ? variable_list{output, h_n, c_n} : variable_list{output, h_n};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    constexpr size_t kFirstWeight = 6;
    const at::TensorList weights(saved.data() + kFirstWeight, saved.size() - kFirstWeight);

    // Inputs in the order of forward's arguments: input, hx, cx, weights; the rest has no gradient.
    const size_t count = 3 + weights.size();
    c10::List<bool> needs;
    size_t edge = 0;  // a state that was not given has no edge
    for (size_t i = 0; i < count; ++i) {
      const bool given = i == 0 || i > 2 || saved[i].defined();
      needs.push_back(given && ctx->needs_input_grad(edge++));
    }
    variable_list result(count + 4);
    const Tensor dc_n = grads.size() > 2 ? grads[2] : Tensor();
    if (!grads[0].defined() && !grads[1].defined() && !dc_n.defined()) return result;
    const auto& mode = ctx->saved_data["mode"].toStringRef();
    const bool has_biases = ctx->saved_data["has_biases"].toBool();
    Tensor output = saved[4];
    if (ctx->saved_data["changes"].toTensor()._version() != ctx->saved_data["unchanged"].toInt()) {
      at::AutoDispatchBelowADInplaceOrView guard;
      output = std::get<0>(layer(saved[0], optional(saved[3]), optional(saved[1]),
                                 optional(saved[2]), weights, mode, has_biases, true));
    }
    const auto gradients = layer_backward(
        optional(grads[0]), optional(grads[1]), optional(dc_n), saved[0], optional(saved[3]),
        optional(saved[1]), optional(saved[2]), weights, output, saved[5], mode, has_biases, needs);
    size_t next = 0;
    for (size_t i = 0; i < count; ++i) {
      if (needs[i]) result[i] = gradients[next++];
    }
    return result;
  }
};

LayerResult layer_autograd(const Tensor& input, const OptionalTensor& batch_sizes,
                           const OptionalTensor& hx, const OptionalTensor& cx,
                           at::TensorList weights, c10::string_view mode, bool has_biases,
                           bool train) {
  check_kernels(input);
  check_devices(input, hx, cx, weights);
  const OptionalTensor x = input;
  const auto operands = {&x, &hx, &cx};
  // Forward-mode AD and complex numbers: what the definition can do and the kernels can't.
  if (input.is_complex() || any_of(operands, weights, has_tangent)) {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("fusedrnn::layer_reference", "")
            .typed<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                                      const OptionalTensor&, const OptionalTensor&,
                                                      at::TensorList, c10::string_view, bool)>();
    auto [y, h_n, c_n] = op.call(input, batch_sizes, hx, cx, weights, mode, has_biases);
    return {y, h_n, c_n, at::empty({0}, input.options())};
  }
  if (!at::GradMode::is_enabled() || !any_of(operands, weights, wants_gradient)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return layer(input, batch_sizes, hx, cx, weights, mode, has_biases, train);
  }
  const Admission admission;
  LayerResult all;
  const variable_list result = LayerFunction::apply(input, hx, cx, weights, batch_sizes,
                                                    std::string(mode), has_biases, &all);
  auto& [output, h_n, c_n, reserve] = all;
  return {result[0], result[1], result.size() > 2 ? result[2] : c_n, reserve};
}

}  // namespace

TORCH_LIBRARY(fusedrnn, m) {
  const std::string operands =
      "Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights";
  m.def(("layer(" + operands +
         ", str mode, bool has_biases, bool train) -> "
         "(Tensor output, Tensor h_n, Tensor c_n, Tensor reserve)")
            .c_str());
  m.def(("layer_reference(" + operands +
         ", str mode, bool has_biases) -> (Tensor output, Tensor h_n, Tensor c_n)")
            .c_str());
  for (const std::string name : {"layer_backward", "layer_backward_reference"}) {
    m.def((name + "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, " + operands +
           ", Tensor output, Tensor reserve, str mode, bool has_biases, bool[] needs) -> Tensor[]")
              .c_str());
  }
  m.def(("stack(" + operands +
         ", str mode, bool has_biases, int num_layers, float dropout, bool train, "
         "bool bidirectional) -> (Tensor output, Tensor h_n, Tensor c_n)")
            .c_str(),
        stack);
  m.def(
      "cell(Tensor input, Tensor hx, Tensor? cx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, str mode) -> (Tensor h, Tensor c)",
      cell);
}

TORCH_LIBRARY_IMPL(fusedrnn, Autograd, m) {
  m.impl("layer", layer_autograd);
  m.impl("layer_backward", layer_backward_autograd);
}

// To torch.func, too, they are what they are composed of, from the outermost transform on: layers,
// whose rules under vmap are Python's, and dropout, for which torch.func has its own.
TORCH_LIBRARY_IMPL(fusedrnn, FuncTorchDynamicLayerFrontMode, m) {
  m.impl("stack", stack);
  m.impl("cell", cell);
}

}  // namespace fusedrnn::ops

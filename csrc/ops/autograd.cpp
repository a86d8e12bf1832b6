// Schemas, and the layer's autograd formula. It calls operators only, so that a tracer can follow
// it, and stands in C++ because its host time is part of every small call.
#include <ATen/FuncTorchTLS.h>
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

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
  using Signature = decltype(layer_backward);
  auto& dispatcher = c10::Dispatcher::singleton();
  static const auto fused =
      dispatcher.findSchemaOrThrow("fusedrnn::layer_backward", "").typed<Signature>();
  // To differentiate this again, the definition in plain torch takes over (fusedrnn/ops.py).
  static const auto twice =
      dispatcher.findSchemaOrThrow("fusedrnn::layer_backward_reference", "").typed<Signature>();
  if (at::GradMode::is_enabled()) {
    return twice.call(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                      reserve, mode, has_biases, needs);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return fused.call(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                    reserve, mode, has_biases, needs);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool wants_gradient(const OptionalTensor& tensor) { return tensor && tensor->requires_grad(); }

bool has_tangent(const OptionalTensor& tensor) {
  return tensor && tensor->defined() && tensor->_fw_grad(/*level=*/0).defined();
}

bool inside_func_transform() {
  const auto& tls = at::functorch::functorchTLSAccessor();
  if (!tls) return false;
  try {
    tls->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    return true;
  }
  return false;
}

// Forward-mode AD, torch.func and complex numbers: what the definition can do and the kernels
// can't.
bool needs_reference(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                     at::TensorList weights) {
  bool tangent = has_tangent(input) || has_tangent(hx) || has_tangent(cx);
  for (size_t i = 0; !tangent && i < weights.size(); ++i) tangent = has_tangent(weights[i]);
  return tangent || input.is_complex() || inside_func_transform();
}

class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& hx,
                               const OptionalTensor& cx, at::TensorList weights,
                               const OptionalTensor& batch_sizes, std::string mode,
                               bool has_biases) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, h_n, c_n, reserve] =
        layer(input, batch_sizes, hx, cx, weights, mode, has_biases, true);
    std::vector<Tensor> saved{input,
                              hx.value_or(Tensor()),
                              cx.value_or(Tensor()),
                              batch_sizes.value_or(Tensor()),
                              output,
                              reserve};
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    std::vector<Tensor> without{reserve};
    if (mode != "LSTM") without.push_back(c_n);
    ctx->mark_non_differentiable(without);
    ctx->set_materialize_grads(false);
    ctx->saved_data["mode"] = std::move(mode);
    ctx->saved_data["has_biases"] = has_biases;
    return {output, h_n, c_n, reserve};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    constexpr size_t kFirstWeight = 6;
    const at::TensorList weights(saved.data() + kFirstWeight, saved.size() - kFirstWeight);
    auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };

    // Inputs in the order of forward's arguments: input, hx, cx, weights; the rest has no gradient.
    const size_t count = 3 + weights.size();
    c10::List<bool> needs;
    size_t edge = 0;  // a state that was not given has no edge
    for (size_t i = 0; i < count; ++i) {
      const bool given = i == 0 || i > 2 || saved[i].defined();
      needs.push_back(given && ctx->needs_input_grad(edge++));
    }
    variable_list result(count + 3);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    const auto gradients = layer_backward(
        optional(grads[0]), optional(grads[1]), optional(grads[2]), saved[0], optional(saved[3]),
        optional(saved[1]), optional(saved[2]), weights, saved[4], saved[5],
        ctx->saved_data["mode"].toStringRef(), ctx->saved_data["has_biases"].toBool(), needs);
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
  check_devices(input, hx, cx, weights);
  if (needs_reference(input, hx, cx, weights)) {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("fusedrnn::layer_reference", "")
            .typed<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                                      const OptionalTensor&, const OptionalTensor&,
                                                      at::TensorList, c10::string_view, bool)>();
    auto [y, h_n, c_n] = op.call(input, batch_sizes, hx, cx, weights, mode, has_biases);
    return {y, h_n, c_n, at::empty({0}, input.options())};
  }
  bool differentiate = at::GradMode::is_enabled() &&
                       (input.requires_grad() || wants_gradient(hx) || wants_gradient(cx));
  for (size_t i = 0; at::GradMode::is_enabled() && !differentiate && i < weights.size(); ++i) {
    differentiate = weights[i].requires_grad();
  }
  if (!differentiate) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return layer(input, batch_sizes, hx, cx, weights, mode, has_biases, train);
  }
  const variable_list result =
      LayerFunction::apply(input, hx, cx, weights, batch_sizes, std::string(mode), has_biases);
  return {result[0], result[1], result[2], result[3]};
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

TORCH_LIBRARY_IMPL(fusedrnn, Autograd, m) { m.impl("layer", layer_autograd); }

}  // namespace fusedrnn::ops

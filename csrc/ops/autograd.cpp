// Schemas, the layer's autograd formula, and the stack of layers above it. The formula calls
// operators only, so that a tracer can follow it; it stands in C++ because its host time is part of
// every small call.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/layer.h"

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

// Here rather than in a kernel: which kernel runs is chosen by device, and a mix of meta and CPU
// tensors would be taken for a shape inference.
void check_devices(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                   at::TensorList weights) {
  for (const Tensor& weight : weights) {
    TORCH_CHECK(weight.device() == input.device(),
                "Input and parameter tensors are not at the same device, found input tensor at ",
                input.device(), " and parameter tensor at ", weight.device());
  }
  for (const OptionalTensor* state : {&hx, &cx}) {
    TORCH_CHECK(!*state || (*state)->device() == input.device(),
                "Input and hidden tensors are not at the same device, found input tensor at ",
                input.device(), " and hidden tensor at ", (*state)->device());
  }
}

LayerResult layer_autograd(const Tensor& input, const OptionalTensor& batch_sizes,
                           const OptionalTensor& hx, const OptionalTensor& cx,
                           at::TensorList weights, c10::string_view mode, bool has_biases,
                           bool train) {
  check_devices(input, hx, cx, weights);
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

// Half precision is stored, float32 is computed with: one conversion a call on each side.
at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

std::tuple<Tensor, Tensor, Tensor> stack(const Tensor& input, const OptionalTensor& batch_sizes,
                                         const OptionalTensor& hx, const OptionalTensor& cx,
                                         at::TensorList weights, c10::string_view mode,
                                         bool has_biases, int64_t num_layers, double dropout,
                                         bool train, bool bidirectional) {
  const Cell cell = cell_of(mode);
  TORCH_CHECK(num_layers > 0, "num_layers must be greater than zero");
  const int64_t D = bidirectional ? 2 : 1;
  const int64_t per_layer = int64_t(weights.size()) / num_layers;
  TORCH_CHECK(per_layer * num_layers == int64_t(weights.size()) && per_layer % D == 0 &&
                  D * weights_of_direction(cell, has_biases, per_layer) == per_layer,
              "fusedrnn: ", weights.size(), " weights do not make ", num_layers, " layers of ", D,
              " directions");
  for (const auto& [state, name] : {std::pair(&hx, "hx"), std::pair(&cx, "cx")}) {
    TORCH_CHECK(!*state || ((*state)->dim() == 3 && (*state)->size(0) == num_layers * D),
                "fusedrnn: ", name, " must be 3-D (L*D, B, *) with L*D = ", num_layers * D,
                ", got ", (*state)->sizes());
  }

  at::ScalarType outside = input.scalar_type();
  Tensor x = input;
  std::vector<Tensor> w(weights.begin(), weights.end());
  OptionalTensor h = hx, c = cx;
  auto convert = [&](at::ScalarType type) {
    auto to = [type](Tensor& t) {
      if (t.scalar_type() != type) t = t.to(type);
    };
    to(x);
    for (Tensor& t : w) to(t);
    if (h) to(*h);
    if (c) to(*c);
  };
  const auto device = input.device().type();
  if (at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device) &&
      outside != at::kDouble) {
    outside = at::autocast::get_autocast_dtype(device);
    convert(outside);
  }
  if (compute_type(outside) != outside) convert(compute_type(outside));

  std::vector<Tensor> h_n, c_n;
  for (int64_t l = 0; l < num_layers; ++l) {
    auto state = [&](const OptionalTensor& s) -> OptionalTensor {
      if (s) return num_layers == 1 ? *s : s->narrow(0, l * D, D);
      return std::nullopt;
    };
    const at::TensorList of_layer(w.data() + l * per_layer, per_layer);
    OptionalTensor h_0 = state(h);
    // Traced with symbols, only the data of a packed batch knows B: the first layer's symbol has to
    // serve all of them.
    if (!h && batch_sizes && l > 0 && h_n[0].unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
      h_0 = at::zeros_like(h_n[0]);
    }
    auto [y, h_l, c_l, reserve] =
        layer(x, batch_sizes, h_0, state(c), of_layer, mode, has_biases, false);
    x = dropout > 0 && train && l + 1 < num_layers ? at::dropout(y, dropout, true) : y;
    h_n.push_back(h_l);
    c_n.push_back(c_l);
  }
  auto together = [&](std::vector<Tensor>& states) {
    Tensor all = num_layers == 1 ? states[0] : at::cat(states, 0);
    return all.scalar_type() == outside ? all : all.to(outside);
  };
  if (x.scalar_type() != outside) x = x.to(outside);
  return {x, together(h_n), cell == Cell::kLstm ? together(c_n) : c_n[0]};
}

// One step: a layer of one time step, whose rows are the batch.
std::tuple<Tensor, Tensor> cell(const Tensor& input, const Tensor& hx, const OptionalTensor& cx,
                                const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                                const OptionalTensor& b_hh, c10::string_view mode) {
  TORCH_CHECK(b_ih.has_value() == b_hh.has_value(),
              "fusedrnn: b_ih and b_hh must both be given, or neither");
  std::vector<Tensor> weights{w_ih, w_hh};
  if (b_ih) weights.insert(weights.end(), {*b_ih, *b_hh});
  auto lift = [](const Tensor& t) { return t.unsqueeze(0); };
  const OptionalTensor c = cx ? OptionalTensor(lift(*cx)) : std::nullopt;
  auto [y, h_n, c_n] = stack(lift(input), std::nullopt, lift(hx), c, weights, mode,
                             b_ih.has_value(), 1, 0.0, false, false);
  return {h_n.squeeze(0), cx ? c_n.squeeze(0) : c_n};
}

}  // namespace

TORCH_LIBRARY(fusedrnn, m) {
  m.def(
      "layer(Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, str "
      "mode, "
      "bool has_biases, bool train) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor reserve)");
  constexpr auto backward_arguments =
      "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor input, "
      "Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, Tensor output, "
      "Tensor reserve, str mode, bool has_biases, bool[] needs) -> Tensor[]";
  for (const std::string name : {"layer_backward", "layer_backward_reference"}) {
    m.def((name + backward_arguments).c_str());
  }
  m.def(
      "stack(Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, str "
      "mode, "
      "bool has_biases, int num_layers, float dropout, bool train, bool bidirectional) -> "
      "(Tensor output, Tensor h_n, Tensor c_n)",
      stack);
  m.def(
      "cell(Tensor input, Tensor hx, Tensor? cx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, str mode) -> (Tensor h, Tensor c)",
      cell);
}

TORCH_LIBRARY_IMPL(fusedrnn, Autograd, m) { m.impl("layer", layer_autograd); }

}  // namespace fusedrnn::ops

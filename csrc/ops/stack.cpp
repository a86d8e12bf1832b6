// The stack of layers, with dropout between them, and the cell: compositions of the layer operator,
// so that autograd and tracing see through them; or torch.nn's own path (by_torch.h).
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/zeros_like.h>

#include "ops/by_torch.h"
#include "ops/check.h"

namespace fusedrnn::ops {
namespace {

StackResult stack_of(const Tensor& input, const OptionalTensor& batch_sizes,
                     const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
                     c10::string_view mode, bool has_biases, int64_t num_layers, double dropout,
                     bool train, bool bidirectional, bool may_go_to_torch) {
  const Cell cell = cell_of(mode);
  TORCH_CHECK(num_layers > 0, "num_layers must be greater than zero");
  const int64_t D = bidirectional ? 2 : 1;
  const int64_t per_layer = int64_t(weights.size()) / num_layers;
  TORCH_CHECK(per_layer * num_layers == int64_t(weights.size()) && per_layer % D == 0 &&
                  D * weights_of_direction(cell, has_biases, per_layer) == per_layer,
              "fusedrnn: expected weights of ", num_layers, " layers of ", D, " directions, ",
              has_biases ? "4" : "2", " for each (one more projected), got ", weights.size());
  for (const auto& [state, name] : {std::pair(&hx, "hx"), std::pair(&cx, "cx")}) {
    // Symbolic, or a tracer would take the whole shape, B included, for constant.
    TORCH_CHECK(!*state || ((*state)->dim() == 3 && (*state)->sym_size(0) == num_layers * D),
                "fusedrnn: ", name, " must be 3-D (L*D, B, *) with L*D = ", num_layers * D,
                ", got ", (*state)->sizes());
  }

  at::ScalarType outside = input.scalar_type();
  Tensor x = input;
  std::vector<Tensor> w(weights.begin(), weights.end());
  OptionalTensor h = hx, c = cx;
  check_devices(input, hx, cx, weights);
  const auto device = input.device().type();
  const bool autocast = at::autocast::is_autocast_available(device) &&
                        at::autocast::is_autocast_enabled(device) && at::isFloatingType(outside) &&
                        outside != at::kDouble;
  if (autocast) outside = at::autocast::get_autocast_dtype(device);
  auto same_type = [&](const char* name, const OptionalTensor& t, const char* remedy) {
    TORCH_CHECK(!t || autocast || t->scalar_type() == outside, "fusedrnn: ", name, " must be ",
                outside, " as input is, got ", t->scalar_type(), ": ", remedy);
  };
  for (const Tensor& weight : w) same_type("weights", weight, "call module.to(input.dtype)");
  // States that a call under autocast returned have its low type.
  same_type("hx", h, "pass hx.to(input.dtype)");
  same_type("cx", c, "pass cx.to(input.dtype)");
  if (may_go_to_torch) {
    const Stack s{input,      batch_sizes, hx,      cx,    weights, cell,
                  has_biases, num_layers,  dropout, train, D};
    if (std::optional<StackResult> result = by_torch(s, outside)) return *std::move(result);
  }
  // Autocast asks for results in the low type; what has float32 is not rounded to it on the way,
  // and what follows is ours to cast.
  const bool keeps = keeps_bfloat16(input, hx, cx, weights);
  const bool as_it_is = keeps && !autocast && num_layers == 1;
  if (const auto type = compute_type(outside); autocast || (type != outside && !as_it_is)) {
    const auto to = [type](Tensor& t) {
      if (t.scalar_type() != type) t = t.to(type);
    };
    to(x);
    if (h) to(*h);
    if (c) to(*c);
    if (!keeps) {
      for (Tensor& weight : w) to(weight);
    }
  }
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);

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
        keeps ? layer_of_bfloat16(x, batch_sizes, h_0, state(c), of_layer, mode, has_biases)
              : layer(x, batch_sizes, h_0, state(c), of_layer, mode, has_biases, false);
    x = dropout != 0 && train && l + 1 < num_layers ? at::dropout(y, dropout, true) : y;
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

}  // namespace

std::tuple<Tensor, Tensor, Tensor> stack(const Tensor& input, const OptionalTensor& batch_sizes,
                                         const OptionalTensor& hx, const OptionalTensor& cx,
                                         at::TensorList weights, c10::string_view mode,
                                         bool has_biases, int64_t num_layers, double dropout,
                                         bool train, bool bidirectional) {
  return stack_of(input, batch_sizes, hx, cx, weights, mode, has_biases, num_layers, dropout, train,
                  bidirectional, /*may_go_to_torch=*/true);
}

// One step: a layer of one time step, whose rows are the batch. cuDNN has no cell, so it is ours
// wherever there is a kernel.
std::tuple<Tensor, Tensor> cell(const Tensor& input, const Tensor& hx, const OptionalTensor& cx,
                                const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                                const OptionalTensor& b_hh, c10::string_view mode) {
  TORCH_CHECK(b_ih.has_value() == b_hh.has_value(),
              "fusedrnn: b_ih and b_hh must both be given, or neither");
  if (!has_kernels(input)) return cell_by_torch(input, hx, cx, w_ih, w_hh, b_ih, b_hh, mode);
  if (!at::autocast::is_autocast_enabled(at::kCPU)) {
    if (auto result = step_on_cpu(input, hx, cx, w_ih, w_hh, b_ih, b_hh, mode)) return *result;
  }
  std::vector<Tensor> weights{w_ih, w_hh};
  if (b_ih) weights.insert(weights.end(), {*b_ih, *b_hh});
  auto lift = [](const Tensor& t) { return t.unsqueeze(0); };
  const OptionalTensor c = cx ? OptionalTensor(lift(*cx)) : std::nullopt;
  auto [y, h_n, c_n] = stack_of(lift(input), std::nullopt, lift(hx), c, weights, mode,
                                b_ih.has_value(), 1, 0.0, false, false, /*may_go_to_torch=*/false);
  return {h_n.squeeze(0), mode == "LSTM" ? c_n.squeeze(0) : c_n};
}

}  // namespace fusedrnn::ops

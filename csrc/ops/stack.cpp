// The stack of layers, with dropout between them, and the cell: compositions of the layer operator,
// so that autograd and tracing see through them.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>

#include "ops/check.h"

namespace fusedrnn::ops {
namespace {

// Half precision is stored, float32 is computed with: one conversion a call on each side.
at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

}  // namespace

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
  check_devices(input, hx, cx, weights);
  const auto device = input.device().type();
  if (at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device) &&
      at::isFloatingType(outside) && outside != at::kDouble) {
    outside = at::autocast::get_autocast_dtype(device);
    convert(outside);
  }
  auto same_type = [&](const char* name, const OptionalTensor& t) {
    TORCH_CHECK(!t || t->scalar_type() == outside, "fusedrnn: ", name, " must be ", outside,
                " as input is, got ", t->scalar_type());
  };
  for (const Tensor& weight : w) same_type("weights", weight);
  same_type("hx", h);
  same_type("cx", c);
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
  return {h_n.squeeze(0), mode == "LSTM" ? c_n.squeeze(0) : c_n};
}

}  // namespace fusedrnn::ops

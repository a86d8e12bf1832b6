// The stack: layers with dropout between them. Composed of the layer operator, so that autograd and
// tracing see through it; or torch.nn's own path (cudnn.h).
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <utility>

#include "ops/check.h"
#include "ops/cudnn.h"

namespace fusedrnn::ops {
namespace {

// How dtypes change in a call.
struct Types {
  at::ScalarType outside;  // of input, or what autocast makes of it, and of the results
  bool autocast;
};

// Refuses weights and states of another dtype than input's, unless autocast converts them.
Types types_of(const Stack& s) {
  Types types{s.input.scalar_type(), false};
  const auto device = s.input.device().type();
  types.autocast = at::autocast::is_autocast_available(device) &&
                   at::autocast::is_autocast_enabled(device) && at::isFloatingType(types.outside) &&
                   types.outside != at::kDouble;
  if (types.autocast) {
    types.outside = at::autocast::get_autocast_dtype(device);
    return types;
  }
  const auto same = [&](const char* name, const Tensor& t, const char* remedy) {
    TORCH_CHECK(t.scalar_type() == types.outside, "fusedrnn: ", name, " must be ", types.outside,
                " as input is, got ", t.scalar_type(), ": ", remedy);
  };
  for (const Tensor& weight : s.weights.all) same("weights", weight, "call module.to(input.dtype)");
  // States that a call under autocast returned have its low type.
  if (s.hx) same("hx", *s.hx, "pass hx.to(input.dtype)");
  if (s.cx) same("cx", *s.cx, "pass cx.to(input.dtype)");
  return types;
}

void check_stack(const Stack& s) {
  for (const auto& [state, name] : {std::pair(&s.hx, "hx"), std::pair(&s.cx, "cx")}) {
    // Symbolic, or a tracer would take the whole shape, B included, for constant.
    TORCH_CHECK(!*state || ((*state)->dim() == 3 && (*state)->sym_size(0) == s.L * s.D),
                "fusedrnn: ", name, " must be 3-D (L*D, B, *) with L*D = ", s.L * s.D, ", got ",
                (*state)->sizes());
  }
  check_devices(s);
}

// Tensors of a stack in the dtype that its layers compute in.
class Converted {
 public:
  Converted(const Stack& s, at::ScalarType type, bool keeps_weights)
      : input(to(s.input, type)), hx(s.hx), cx(s.cx), weights(s.weights) {
    if (hx) hx = to(*hx, type);
    if (cx) cx = to(*cx, type);
    const auto fits = [&](const Tensor& weight) { return weight.scalar_type() == type; };
    if (keeps_weights || std::all_of(weights.all.begin(), weights.all.end(), fits)) return;
    for (const Tensor& weight : s.weights.all) kept_.push_back(to(weight, type));
    weights.all = kept_;
  }
  Converted(const Converted&) = delete;
  Converted& operator=(const Converted&) = delete;

  Tensor input;
  OptionalTensor hx, cx;
  WeightList weights;

 private:
  static Tensor to(const Tensor& t, at::ScalarType type) {
    return t.scalar_type() == type ? t : t.to(type);
  }

  std::vector<Tensor> kept_;
};

StackResult run_layers(const Stack& s, const Types& types) {
  // The CPU kernels read weights in bfloat16. A single layer takes input and states in it as well;
  // between layers, and under autocast, they stay in float32, so that nothing is rounded on the
  // way.
  const bool keeps = keeps_bfloat16(s);
  const bool as_it_is = keeps && !types.autocast && s.L == 1;
  const Converted all(s, as_it_is ? types.outside : compute_type(types.outside), keeps);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);

  Tensor x = all.input;
  std::vector<Tensor> h_n, c_n;
  for (int64_t l = 0; l < s.L; ++l) {
    const auto state = [&](const OptionalTensor& of_all) -> OptionalTensor {
      if (of_all) return s.L == 1 ? *of_all : of_all->narrow(0, l * s.D, s.D);
      return std::nullopt;
    };
    OptionalTensor h = state(all.hx);
    const OptionalTensor c = state(all.cx);
    // Traced with symbols, only the data of a packed batch knows B: the first layer's symbol has to
    // serve all of them.
    if (!h && s.packed() && l > 0 && h_n[0].unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
      h = at::zeros_like(h_n[0]);
    }
    const Operands o{x,
                     s.batch_sizes,
                     h,
                     c,
                     all.weights.part(l * s.D, s.D),
                     s.cell,
                     /*train=*/false,
                     keeps ? Stored::kBFloat16 : Stored::kAsInput};
    auto [y, h_l, c_l, reserve] = keeps ? layer_cpu(o) : layer(o);
    x = s.dropout != 0 && s.train && l + 1 < s.L ? at::dropout(y, s.dropout, true) : y;
    h_n.push_back(h_l);
    c_n.push_back(c_l);
  }
  const auto outside = [&](const Tensor& t) {
    return t.scalar_type() == types.outside ? t : t.to(types.outside);
  };
  const auto together = [&](const std::vector<Tensor>& states) {
    return outside(s.L == 1 ? states[0] : at::cat(states, 0));
  };
  x = outside(x);
  return {x, together(h_n), spec(s.cell).has_c ? together(c_n) : c_n[0]};
}

}  // namespace

StackResult stack_by_layers(const Stack& s) {
  check_stack(s);
  return run_layers(s, types_of(s));
}

StackResult stack(const Stack& s) {
  check_stack(s);
  const Types types = types_of(s);
  if (std::optional<StackResult> result = by_torch(s, types.outside)) return *std::move(result);
  return run_layers(s, types);
}

}  // namespace fusedrnn::ops

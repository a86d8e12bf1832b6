// The stack: layers with dropout between them. Composed of the layer operator, so that autograd and
// tracing see through it; or torch.nn's own path (cudnn.h).
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "ops/check.h"
#include "ops/cpu/bfloat16.h"
#include "ops/cudnn.h"

namespace fusedrnn::ops {
namespace {

constexpr int64_t kAutomatic = -1;                       // `every`: by the budget
constexpr int64_t kReserveBudget = int64_t(1024) << 20;  // bytes, where nothing is set
constexpr int64_t kLeastAutomatic = 16;                  // steps

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
  if (s.course.reset_h) same("reset_h", *s.course.reset_h, "pass reset_h.to(input.dtype)");
  if (s.course.reset_c) same("reset_c", *s.course.reset_c, "pass reset_c.to(input.dtype)");
  return types;
}

void check_stack(const Stack& s) {
  for (const auto& [state, name] :
       {std::pair(&s.hx, "hx"), std::pair(&s.cx, "cx"), std::pair(&s.course.reset_h, "reset_h"),
        std::pair(&s.course.reset_c, "reset_c")}) {
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
      : input(to(s.input, type)), hx(s.hx), cx(s.cx), course(s.course), weights(s.weights) {
    for (OptionalTensor* state : {&hx, &cx, &course.reset_h, &course.reset_c}) {
      if (*state) *state = to(**state, type);
    }
    // The host cuts the rows: what lies on the device it reads once, not for each layer and pass.
    for (OptionalTensor* rows : {&course.lengths, &course.resets}) {
      const bool there = *rows && is_plain(**rows) && (*rows)->device() == input.device();
      if (there) *rows = (*rows)->cpu();
    }
    const auto fits = [&](const Tensor& weight) { return weight.scalar_type() == type; };
    if (keeps_weights || std::all_of(weights.all.begin(), weights.all.end(), fits)) return;
    for (const Tensor& weight : s.weights.all) kept_.push_back(to(weight, type));
    weights.all = kept_;
  }
  Converted(const Converted&) = delete;
  Converted& operator=(const Converted&) = delete;

  Tensor input;
  OptionalTensor hx, cx;
  Course course;
  WeightList weights;

 private:
  static Tensor to(const Tensor& t, at::ScalarType type) {
    return t.scalar_type() == type ? t : t.to(type);
  }

  std::vector<Tensor> kept_;
};

// Bytes that a layer's reserve may take, for checkpoint_every = "auto".
int64_t reserve_budget() {
  const char* const set = std::getenv("FUSEDRNN_RESERVE_MB");
  if (!set || !*set) return kReserveBudget;
  char* end = nullptr;
  const double megabytes = std::strtod(set, &end);
  TORCH_CHECK_VALUE(*end == 0 && megabytes > 0 && megabytes < 1e12,
                    "fusedrnn: FUSEDRNN_RESERVE_MB must be a number above 0, got ", set);
  return int64_t(megabytes * (1 << 20));
}

// Steps from one kept state of a layer to the next, 0: all gates are kept. Automatic, that is where
// they fit the budget; else pieces are as long as half of it holds. A power of two, so that it
// stays the same for many T and B where these are symbols.
int64_t every_of(const Stack& s, const Tensor& x, const WeightList& weights) {
  if (s.course.every != kAutomatic) return s.course.every;
  const CellSpec& cell = spec(s.cell);
  if (!cell.keeps_slots) return 0;
  const int64_t H = weights.all[1].size(0) / gates_of(s.cell);
  const int64_t row = s.D * H * int64_t(x.element_size()) *
                      (cell.slots + cell.has_c + (s.weights.projected ? 1 : 0));
  const c10::SymInt steps = s.packed() ? s.batch_sizes->sym_size(0) : x.sym_size(0);
  const c10::SymInt rows = s.packed() ? x.sym_size(0) : x.sym_size(0) * x.sym_size(1);
  const int64_t budget = reserve_budget();
  if (rows * row <= budget) return 0;
  const c10::SymInt of_step = s.packed() ? rows / steps : x.sym_size(1);
  int64_t every = kLeastAutomatic;
  while (of_step * (2 * every * row) <= budget / 2) every *= 2;
  return every;
}

StackResult run_layers(const Stack& s, const Types& types) {
  // The CPU kernels read weights in bfloat16. A single layer takes input and states in it too;
  // between layers, and under autocast, they stay float32, so that nothing is rounded on the way.
  const bool keeps = keeps_bfloat16(s);
  const bool as_it_is = keeps && !types.autocast && s.L == 1;
  const Converted all(s, as_it_is ? types.outside : compute_type(types.outside), keeps);
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);

  Tensor x = all.input;
  std::vector<Tensor> h_n, c_n, states;
  Tensor none;
  const bool has_c = spec(s.cell).has_c;
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
    const WeightList weights = all.weights.part(l * s.D, s.D);
    Course course = all.course;
    course.reset_h = state(all.course.reset_h);
    course.reset_c = state(all.course.reset_c);
    course.states = has_c && s.states > (l + 1 < s.L ? 1 : 0);
    course.every = every_of(s, x, weights);
    course.bfloat16 = types.outside == at::kBFloat16 && x.is_cpu() && may_multiply_bfloat16();
    const Operands o{x,
                     s.batch_sizes,
                     h,
                     c,
                     weights,
                     s.cell,
                     /*train=*/false,
                     course,
                     keeps ? Stored::kBFloat16 : Stored::kAsInput};
    auto [y, h_l, c_l, reserve, states_l] = keeps ? layer_cpu(o) : layer(o);
    // Without c, h is the state, and that of the top layer is the output.
    if (has_c ? course.states : s.states == 2) states.push_back(has_c ? states_l : y);
    x = s.dropout != 0 && s.train && l + 1 < s.L ? at::dropout(y, s.dropout, true) : y;
    none = states_l;
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
  const Tensor of_steps = states.empty()  ? none
                          : s.states == 1 ? outside(states[0])
                                          : outside(at::stack(states));
  return {x, together(h_n), has_c ? together(c_n) : c_n[0], of_steps};
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

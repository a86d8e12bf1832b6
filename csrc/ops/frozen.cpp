// See frozen.h.
#include "ops/frozen.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <pthread.h>
#include <torch/library.h>

#include <iterator>
#include <mutex>
#include <unordered_map>

#include "ops/check.h"
#include "ops/schema.h"

namespace fusedrnn::ops {
namespace {

DType stored_as(at::ScalarType type) {
  if (type == at::kBFloat16) return DType::kBFloat16;
  if (type == at::kChar) return DType::kInt8;
  return dtype_of(type);
}
at::ScalarType type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return at::kFloat;
    case DType::kFloat64:
      return at::kDouble;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kInt8:
      return at::kChar;
  }
  return at::kFloat;
}

frozen::Shape shape_of(const FrozenWeights& given, const WeightList& all) {
  const DirectionWeights first = all.of(0);
  const Cell cell = cell_of(given.mode);
  const DType stored = stored_as(first.w_ih->scalar_type());
  return {.cell = cell,
          .L = given.L,
          .D = given.D,
          .I = first.w_ih->size(1),
          .H = first.w_ih->size(0) / gates_of(cell),
          .P = first.w_hh->size(1),
          .projected = given.projected,
          .stored = stored,
          .computed = stored == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32};
}

void check_gradient(const char* name, const Tensor& tensor) {
  TORCH_CHECK(!at::GradMode::is_enabled() || !tensor.requires_grad(),
              "fusedrnn: a frozen layer has no gradients, and ", name,
              " requires one: call it under torch.no_grad(), or thaw() it");
}

// What no kernel without gradients could honour.
void check_plain(const char* name, const Tensor& tensor) {
  check_gradient(name, tensor);
  TORCH_CHECK(is_plain(tensor),
              "fusedrnn: a frozen layer cannot be traced, exported or transformed, and ", name,
              " is no plain tensor: thaw() it first");
}

template <class Check>
void check_each(const FrozenCall& call, const Check& check) {
  check("input", call.input);
  for (const auto& [name, given] :
       {std::pair("hx", &call.hx), std::pair("cx", &call.cx),
        std::pair("lengths", &call.course.lengths), std::pair("resets", &call.course.resets),
        std::pair("reset_state", &call.course.reset_h),
        std::pair("reset_state", &call.course.reset_c)}) {
    if (*given) check(name, **given);
  }
}

// Where input is, and of which dtype, for a stack that computes in `inside`.
void check_input(const Tensor& input, at::ScalarType inside) {
  TORCH_CHECK(input.device().is_cpu(), "fusedrnn: a frozen layer runs on the CPU, and input is on ",
              input.device(), ": thaw() it first");
  const at::ScalarType outside = input.scalar_type();
  const bool low = outside == at::kBFloat16 || outside == at::kHalf;
  TORCH_CHECK_VALUE(outside == inside || (inside == at::kFloat && low), "fusedrnn: input must be ",
                    inside, inside == at::kFloat ? " or BFloat16 or Half" : "",
                    " for a frozen layer, got ", outside);
}

// Tensors of a layer's weights that have nothing but their sizes.
std::vector<Tensor> sizes_alone(const frozen::Shape& s, int64_t layer, const Tensor& like) {
  const Tensor one = at::empty({1}, like.options());
  std::vector<Tensor> all;
  for (int64_t d = 0; d < s.D; ++d) {
    all.push_back(one.expand({s.rows(), s.inputs_of(layer)}));
    all.push_back(one.expand({s.rows(), s.P}));
    if (s.projected) all.push_back(one.expand({s.P, s.H}));
  }
  return all;
}

// Stacks by their numbers. A process that is forked while another thread looks one up finds the
// lock open.
class Numbered {
 public:
  static Numbered& all() {
    static Numbered* const one = new Numbered();  // never destroyed: threads may outlive main
    return *one;
  }
  int64_t add(const std::shared_ptr<const frozen::Stack>& stack) {
    const std::lock_guard guard(lock_);
    for (auto at = stacks_.begin(); at != stacks_.end();) {
      at = at->second.expired() ? stacks_.erase(at) : std::next(at);
    }
    stacks_[++last_] = stack;
    return last_;
  }
  std::shared_ptr<const frozen::Stack> find(int64_t number) {
    const std::lock_guard guard(lock_);
    const auto found = stacks_.find(number);
    return found == stacks_.end() ? nullptr : found->second.lock();
  }

 private:
  Numbered() {
    pthread_atfork([] { all().lock_.lock(); }, [] { all().lock_.unlock(); },
                   [] { all().lock_.unlock(); });
  }

  std::mutex lock_;
  int64_t last_ = 0;
  std::unordered_map<int64_t, std::weak_ptr<const frozen::Stack>> stacks_;
};

}  // namespace

int64_t number_of(const std::shared_ptr<const frozen::Stack>& stack) {
  return Numbered::all().add(stack);
}

std::shared_ptr<const frozen::Stack> stack_of(int64_t number) {
  std::shared_ptr<const frozen::Stack> stack = Numbered::all().find(number);
  TORCH_CHECK(stack, "fusedrnn: number ", number,
              " must be of a frozen layer that is still there: call the layer itself");
  return stack;
}

std::shared_ptr<const frozen::Stack> freeze(const FrozenWeights& given) {
  const WeightList all =
      weights_of_stack(cell_of(given.mode), given.has_biases, given.weights, given.L, given.D);
  const frozen::Shape shape = shape_of(given, all);
  std::vector<Tensor> kept;  // contiguous
  const auto memory = [&](const Tensor* tensor, DType dtype) -> const void* {
    if (!tensor) return nullptr;
    kept.push_back(tensor->to(at::kCPU, type_of(dtype)).contiguous());
    return address(kept.back());
  };
  const auto scale = [&](int64_t index) {
    if (shape.stored != DType::kInt8) return static_cast<const float*>(nullptr);
    return static_cast<const float*>(memory(&given.scales.at(index), DType::kFloat32));
  };
  std::vector<frozen::Weights> weights;
  for (int64_t i = 0; i < shape.L * shape.D; ++i) {
    const DirectionWeights w = all.of(i);
    weights.push_back({.w_ih = memory(w.w_ih, shape.stored),
                       .w_hh = memory(w.w_hh, shape.stored),
                       .s_ih = scale(2 * i),
                       .s_hh = scale(2 * i + 1),
                       .b_ih = memory(w.b_ih, shape.computed),
                       .b_hh = memory(w.b_hh, shape.computed),
                       .w_hr = memory(w.w_hr, shape.computed)});
  }
  return std::make_shared<const frozen::Stack>(shape, weights);
}

Tensor unpacked(const frozen::Stack& stack, int64_t layer, int64_t direction, bool recurrent) {
  const frozen::Shape& s = stack.shape();
  Tensor weights = at::empty({s.rows(), recurrent ? s.P : s.inputs_of(layer)}, type_of(s.stored));
  stack.unpack(layer, direction, recurrent, mutable_address(weights));
  return weights;
}

namespace {

StackResult run_frozen(const FrozenCall& call) {
  const std::shared_ptr<const frozen::Stack> stack = stack_of(call.number);
  const frozen::Shape& s = stack->shape();
  check_each(call, check_plain);
  const at::ScalarType outside = call.input.scalar_type(), inside = type_of(s.computed);
  check_input(call.input, inside);
  const auto wide = [&](const OptionalTensor& state, const char* name) -> OptionalTensor {
    if (!state) return state;
    TORCH_CHECK(state->dim() == 3 && state->size(0) == s.L * s.D, "fusedrnn: ", name,
                " must be 3-D (L*D, B, *) with L*D = ", s.L * s.D, ", got ", state->sizes());
    TORCH_CHECK(state->scalar_type() == outside, "fusedrnn: ", name, " must be ", outside,
                " as input is, got ", state->scalar_type());
    return state->to(inside);
  };
  const OptionalTensor hx = wide(call.hx, "hx"), cx = wide(call.cx, "cx");
  Course course = call.course;
  course.reset_h = wide(course.reset_h, "reset_h");
  course.reset_c = wide(course.reset_c, "reset_c");
  const OptionalTensor reset_h = course.reset_h, reset_c = course.reset_c;
  Tensor x = call.input.to(inside), none;
  std::vector<Tensor> h_n, c_n, states;
  const bool has_c = spec(s.cell).has_c;
  const at::NoGradGuard no_gradients;
  for (int64_t l = 0; l < s.L; ++l) {
    const auto state = [&](const OptionalTensor& all) -> OptionalTensor {
      if (!all || s.L == 1) return all;
      return all->narrow(0, l * s.D, s.D);
    };
    const OptionalTensor h = state(hx), c = state(cx);
    course.reset_h = state(reset_h);
    course.reset_c = state(reset_c);
    course.states = has_c && call.states > (l + 1 < s.L ? 1 : 0);
    const std::vector<Tensor> sizes = sizes_alone(s, l, x);
    const Operands o{.input = x,
                     .batch_sizes = call.batch_sizes,
                     .hx = h,
                     .cx = c,
                     .weights = {sizes, false, s.projected},
                     .cell = s.cell,
                     .train = false,
                     .course = course,
                     .frozen = {stack.get(), l}};
    auto [y, h_l, c_l, reserve, states_l] = layer_cpu(o);
    if (has_c ? course.states : call.states == 2) states.push_back(has_c ? states_l : y);
    none = states_l;
    x = y;
    h_n.push_back(h_l);
    c_n.push_back(c_l);
  }
  const auto together = [&](const std::vector<Tensor>& all) {
    return (s.L == 1 ? all[0] : at::cat(all, 0)).to(outside);
  };
  const Tensor of_steps = states.empty() ? none : call.states == 1 ? states[0] : at::stack(states);
  return {x.to(outside), together(h_n), has_c ? together(c_n) : c_n[0].to(outside),
          of_steps.to(outside)};
}

// What torch.compile traces has no gradient either.
StackResult without_gradients(const FrozenCall& call) {
  check_each(call, check_gradient);
  const at::AutoDispatchBelowADInplaceOrView below;
  return frozen_stack(call);
}

// For every device, which it checks itself; tracers and torch.func come to it first, and are
// refused.
TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) {
  m.impl("frozen", frozen_op<run_frozen>);
}
TORCH_LIBRARY_IMPL(fusedrnn, Autograd, m) { m.impl("frozen", frozen_op<without_gradients>); }
TORCH_LIBRARY_IMPL(fusedrnn, Tracer, m) { m.impl("frozen", frozen_op<run_frozen>); }
TORCH_LIBRARY_IMPL(fusedrnn, FuncTorchDynamicLayerFrontMode, m) {
  m.impl("frozen", frozen_op<run_frozen>);
}

}  // namespace

std::tuple<Tensor, Tensor, OptionalTensor> step_frozen(
    const std::shared_ptr<const frozen::Stack>& stack, const Tensor& input,
    const OptionalTensor& hx, const OptionalTensor& cx) {
  const frozen::Shape& s = stack->shape();
  check_each({input, std::nullopt, hx, cx, {}}, check_plain);
  TORCH_CHECK(input.dim() == 2 && input.size(1) == s.I &&
                  input.scalar_type() == type_of(s.computed) && input.is_cpu(),
              "fusedrnn: step takes input ", type_of(s.computed), " [B, ", s.I,
              "] on the CPU, got ", input.scalar_type(), " ", input.sizes());
  const int64_t B = input.size(0);
  const bool has_c = spec(s.cell).has_c;
  TORCH_CHECK(hx.has_value() == cx.has_value() || !has_c, "fusedrnn: step takes (h, c) or None");
  const auto state = [&](const char* name, const OptionalTensor& given, int64_t columns) {
    if (!given) return Tensor();
    const int64_t sizes[] = {s.L, B, columns};
    TORCH_CHECK(given->sizes() == at::IntArrayRef(sizes) && given->is_cpu() &&
                    given->scalar_type() == input.scalar_type(),
                "fusedrnn: ", name, " must be ", input.scalar_type(), " ", at::IntArrayRef(sizes),
                " (L, B, *) on the CPU, got ", given->scalar_type(), " ", given->sizes());
    return given->contiguous();
  };
  const Tensor x = input.contiguous(), h = state("hx", hx, s.P), c = state("cx", cx, s.H);
  frozen::Stream stream(stack, B);
  if (h.defined()) stream.write_states(address(h), address(c));
  const auto made = [&](at::IntArrayRef sizes) { return at::empty(sizes, x.options()); };
  Tensor y = made({B, s.P}), h_n = made({s.L, B, s.P});
  OptionalTensor c_n;
  if (has_c) c_n = made({s.L, B, s.H});
  stream.run(address(x), mutable_address(y), 1);
  stream.read_states(mutable_address(h_n), c_n ? mutable_address(*c_n) : nullptr);
  return {y, h_n, c_n};
}

}  // namespace fusedrnn::ops

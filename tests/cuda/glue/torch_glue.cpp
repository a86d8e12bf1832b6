// The CUDA half of the operators as CPU kernels: csrc/ops/cuda and the kernels it calls, run by the
// shim, on memory of the host. Loaded after fusedrnn it takes the place of the CPU kernels, so that
// tests of layers then test this. As one translation unit, because torch's headers take longer to
// read than all of this to compile.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

// What the sources below register for CUDA goes to the CPU; they alone know that they do so.
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) _TORCH_LIBRARY_IMPL(ns, CPU, m, C10_UID)
// Pinned memory exists only beside a GPU.
#define pinned_memory(wish) pinned_memory((wish) && false)

// clang-format off
#include "launches.h"  // before what it stands in front of
// clang-format on

#include "ops/calls.cpp"
#include "ops/check.cpp"
#include "ops/choice.cpp"
#include "ops/cuda/again.cpp"
#include "ops/cuda/backward.cpp"
#include "ops/cuda/forward.cpp"
#include "ops/cuda/offsets.cpp"
#include "ops/cuda/product.cpp"
#include "ops/cuda/recurrence.cpp"
#include "ops/cuda/side.cpp"
#include "ops/cuda/trust.cpp"
#include "ops/cuda/weight_gradients.cpp"
#include "ops/cudnn.cpp"
#include "ops/cut.cpp"
#include "ops/operands.cpp"
#include "ops/stack.cpp"

// Rows of padded tensors move as they do on a GPU, by torch's operators.
// clang-format off
#include "ops/memory.h"  // which asks too
#define is_cuda() is_cpu()
#include "ops/segments.cpp"
#undef is_cuda
// clang-format on

namespace fusedrnn::ops {

// A cell's way past the layer is the CPU kernels' own.
std::optional<StepResult> step_on_cpu(const Step&) { return std::nullopt; }

// So are its threads, of which only moves on a CPU ask for some.
cpu::Team team() {
  return {[](int, void (*body)(void*, int, int), void* context) { body(context, 0, 1); }, 1};
}

// So are weights in bfloat16.
bool keeps_bfloat16(const Operands&) { return false; }
LayerResult layer_cpu(const Operands&) { TORCH_CHECK(false, "only the CPU kernels read bfloat16"); }

namespace {

// torch's own layers, called as they are on a GPU where they are estimated to be faster.
StackResult stack_by_torch(const Stack& s) {
  TORCH_CHECK(problem_of(s), "the arguments do not fit");
  return torch_stack(s);
}

void start(int64_t error) {
  const Problem p{.cell = Cell::kGru,
                  .dtypes = all_of(DType::kFloat32),
                  .T = 5,
                  .B = 3,
                  .I = 2,
                  .H = 100,
                  .P = 100,
                  .projected = false,
                  .training = true,
                  .reverse = false,
                  .packed = false,
                  .offsets = nullptr};
  int none = 0;
  Restriction cluster = Restriction::to_tile(-1);
  cluster.block = false;
  const cuda::Plan plan =
      *cuda::plan(cuda::Pass::kBackward, p, {1, 1, true}, cuda::device(0, &none), {}, cluster);
  check_started(int(error), cuda::Pass::kBackward, p, plan);
}

// Whether an LSTM of L layers that trains, I = H, goes by torch's path: what a stack on a GPU asks
// first.
bool goes_by_torch(int64_t T, int64_t B, int64_t H, int64_t L) {
  const Problem p{.cell = Cell::kLstm,
                  .dtypes = all_of(DType::kFloat32),
                  .T = T,
                  .B = B,
                  .I = H,
                  .H = H,
                  .P = H,
                  .projected = false,
                  .training = true,
                  .reverse = false,
                  .packed = false,
                  .offsets = nullptr};
  return choice_of(p, {1, L, rnn_takes_tf32()}, {0, cuda_device(0)}, {}).by_torch;
}

// Offsets of a packed batch on the device.
Tensor offsets(const std::vector<int64_t>& rows) {
  Call call{};
  call.input = at::empty({0});
  call.offsets.push_back(0);
  for (const int64_t count : rows) call.offsets.push_back(call.offsets.back() + count);
  return device_offsets(call, c10::cuda::getCurrentCUDAStream());
}

// The main stream writes to the tensors, as far as streams.h knows.
void written(at::TensorList tensors) {
  for (const Tensor& t : tensors) {
    const int64_t bytes = t.numel() * t.element_size();
    glue::Streams::all().issue(nullptr, "what made the input", {{address(t), bytes, true}}, [] {});
  }
}

// Products, algorithms chosen and products in TF32 since the last call; the `fail`-th product from
// here on fails.
std::vector<int64_t> products(int64_t fail) {
  const glue::Counts counts = std::exchange(glue::counts(), {0, 0, 0, fail});
  return {counts.products, counts.choices, counts.tf32};
}

}  // namespace

TORCH_LIBRARY(fusedrnn_glue, m) {
  m.def("excluded(bool backward) -> int",
        [](bool backward) { return int64_t(experience_of(0).excluded[backward]); });
  m.def("checked(bool backward) -> int", [](bool backward) {
    const Scope scope(at::empty({0}));
    return int64_t(device_of(scope).checked[backward]);
  });
  m.def("exclude(bool backward, int tile) -> ()", [](bool backward, int64_t tile) {
    exclude(0, backward ? cuda::Pass::kBackward : cuda::Pass::kForward, int(tile));
  });
  m.def("plans_made() -> int", plans_made);
  m.def("goes_by_torch(int T, int B, int H, int L) -> bool", goes_by_torch);
  m.def("offsets(int[] rows) -> Tensor", [](at::IntArrayRef rows) { return offsets(rows.vec()); });
  m.def("written(Tensor[] tensors) -> ()", written);
  m.def("forget_wait(int n) -> int", [](int64_t n) { return glue::Streams::all().forget(n); });
  m.def("settle() -> str", [] { return glue::Streams::all().settle(); });
  m.def("products(int fail=-1) -> int[]", products);
  m.def(
      "stack_by_torch(Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights, "
      "str mode, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, "
      "Tensor? lengths=None, Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None, "
      "int states=0, int every=0) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor states)",
      stack_op<stack_by_torch>);
  m.def("is_plain(Tensor tensor) -> bool", is_plain);
  m.def("start(int error) -> ()", start);
}

}  // namespace fusedrnn::ops

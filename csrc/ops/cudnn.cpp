// See cudnn.h.
#include "ops/cudnn.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cudnn_is_acceptable.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gru.h>
#include <ATen/ops/gru_cell.h>
#include <ATen/ops/lstm.h>
#include <ATen/ops/lstm_cell.h>
#include <ATen/ops/rnn_relu.h>
#include <ATen/ops/rnn_relu_cell.h>
#include <ATen/ops/rnn_tanh.h>
#include <ATen/ops/rnn_tanh_cell.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <mutex>

#include "ops/check.h"
#include "ops/choice.h"

namespace fusedrnn::ops {

CudaMissing& cuda_missing() {
  static auto* const missing = new CudaMissing;  // outlives the interpreter, which owns `warn`
  return *missing;
}

namespace {

// Lets every warning through but cuDNN's about weights that do not lie in one piece. The modules
// put them in one piece where they can; where weights were swapped its advice does not help.
class QuietHandler : c10::WarningHandler {
 public:
  QuietHandler() : outer_(c10::WarningUtils::get_warning_handler()), guard_(this) {}
  void process(const c10::Warning& warning) override {
    if (warning.msg().find("single contiguous chunk") == std::string::npos)
      outer_->process(warning);
  }

 private:
  c10::WarningHandler* outer_;
  c10::WarningUtils::WarningHandlerGuard guard_;
};

bool wants_gradients(const Stack& s) {
  return at::GradMode::is_enabled() && s.any([](const Tensor& t) { return t.requires_grad(); });
}

[[noreturn]] void refuse_cell(Cell cell) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, cuda_missing().reason, "; and torch.nn has no ",
                              spec(cell).name, " to run in its place");
}

// torch.nn's layers, which a GPU runs by cuDNN.
StackResult torch_stack(const Stack& s) {
  const Tensor& w_hh = *s.weights.of(0).w_hh;
  auto state = [&](const OptionalTensor& given, const c10::SymInt& size) {
    if (given) return given->contiguous();
    const c10::SymInt rows =
        s.packed() ? c10::SymInt((*s.batch_sizes)[0].item<int64_t>()) : s.input.sym_size(1);
    return at::zeros_symint({s.L * s.D, rows, size}, s.input.options());
  };
  const Tensor h = state(s.hx, w_hh.sym_size(1));
  // cuDNN goes back only from where it went forward training.
  const bool train = s.train || wants_gradients(s), biases = s.weights.has_biases, both = s.D == 2;
  const double dropout = s.train ? s.dropout : 0;
  const auto results = [&](const auto& op, const auto& states) {
    return s.packed() ? op(s.input, *s.batch_sizes, states, s.weights.all, biases, s.L, dropout,
                           train, both)
                      : op(s.input, states, s.weights.all, biases, s.L, dropout, train, both,
                           /*batch_first=*/false);
  };
  const auto run = [&](const auto& op) -> StackResult {
    auto [y, h_n] = results(op, h);
    return {y, h_n, at::empty({0}, y.options()), at::empty({0}, y.options())};
  };
  switch (spec(s.cell).torch) {
    case TorchLayer::kLstm: {
      const Tensor c = state(s.cx, w_hh.sym_size(0) / gates_of(s.cell));
      auto [y, h_n, c_n] =
          results([](const auto&... a) { return at::lstm(a...); }, std::array<Tensor, 2>{h, c});
      return {y, h_n, c_n, at::empty({0}, y.options())};
    }
    case TorchLayer::kGru:
      return run([](const auto&... a) { return at::gru(a...); });
    case TorchLayer::kRnnTanh:
      return run([](const auto&... a) { return at::rnn_tanh(a...); });
    case TorchLayer::kRnnRelu:
      return run([](const auto&... a) { return at::rnn_relu(a...); });
    case TorchLayer::kNone:
      break;
  }
  refuse_cell(s.cell);
}

}  // namespace

bool rnn_takes_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::RNN) ==
         at::Float32Precision::TF32;
}

namespace {

void warn_once() {
  static std::once_flag warned;
  if (cuda_missing().warn) std::call_once(warned, cuda_missing().warn);
}

#ifdef FUSEDRNN_WITH_CUDA

// B of packed rows; 0 where they are none.
int64_t packed_batch(const Tensor& batch_sizes, int64_t N) {
  if (batch_sizes.dim() != 1 || batch_sizes.scalar_type() != at::kLong ||
      !batch_sizes.device().is_cpu() || !batch_sizes.is_contiguous() || batch_sizes.numel() == 0) {
    return 0;
  }
  const at::IntArrayRef rows{batch_sizes.const_data_ptr<int64_t>(), size_t(batch_sizes.numel())};
  return fault_of_packed(rows, N).empty() ? rows[0] : 0;
}

// Sizes of a typical layer (layers above the first are alike). Empty if any shape is wrong; the
// layer operator reports it later.
std::optional<Problem> problem_of(const Stack& s) {
  const DirectionWeights first = s.weights.of(0);
  if (s.input.dim() != (s.packed() ? 2 : 3) || first.w_ih->dim() != 2 || first.w_hh->dim() != 2)
    return std::nullopt;
  Problem p = sizes_of(s);
  if (s.packed()) {
    p.T = s.batch_sizes->numel();
    p.B = packed_batch(*s.batch_sizes, s.input.size(0));
  }
  bool fits = p.T > 0 && p.B > 0 && p.H > 0 && p.P > 0 && (!p.projected || p.P < p.H);
  for (int64_t i = 0; fits && i < s.L * s.D; ++i) {
    p.I = i < s.D ? s.input.size(-1) : s.D * p.P;
    fits = p.I > 0;
    each_weight(p, s.weights.of(i),
                [&](const char*, const Tensor& weight, at::IntArrayRef shape, const char*) {
                  fits = fits && weight.sizes().equals(shape);
                });
  }
  fits = fits && (!s.hx || s.hx->sizes().equals({s.L * s.D, p.B, p.P})) &&
         (!s.cx || (spec(s.cell).has_c && s.cx->sizes().equals({s.L * s.D, p.B, p.H})));
  p.training = wants_gradients(s);
  return fits ? std::optional(p) : std::nullopt;
}

// Whether torch.nn's path takes the stack and is estimated to be faster.
bool torch_is_better(const Stack& s, at::ScalarType type) {
  const Restriction restriction = cuda_restriction();
  if (!restriction.torch || !s.input.is_cuda()) return false;
  if (s.any([](const Tensor& t) { return !is_plain(t); })) return false;
  const bool half = compute_type(type) != type;
  if (!half && type != at::kFloat && type != at::kDouble) return false;
  if (!at::cudnn_is_acceptable(s.input)) return false;
  std::optional<Problem> p = problem_of(s);
  if (!p) return false;
  p->dtypes = all_of(type == at::kDouble ? DType::kFloat64 : DType::kFloat32);
  const int device = s.input.device().index();
  cuda::Setting setting{int(s.D), s.L, rnn_takes_tf32()};
  setting.half = half ? c10::toString(type) : nullptr;
  return choice_of(*p, setting, {device, cuda_device(device)}, restriction).by_torch;
}

#else

bool torch_is_better(const Stack&, at::ScalarType) { return false; }

#endif

}  // namespace

std::optional<StackResult> by_torch(const Stack& s, at::ScalarType type) {
  // torch.nn knows nothing of these. It may keep what checkpoint_every would not.
  const bool ours = s.course.is_cut() || s.states > 0;
  if (!has_kernels(s.input)) {
    TORCH_CHECK_NOT_IMPLEMENTED(!ours, cuda_missing().reason,
                                "; lengths, resets and return_states are its own");
    warn_once();
    return torch_stack(s);
  }
  if (ours || s.course.every != 0 || !torch_is_better(s, type)) return std::nullopt;
  const QuietHandler quiet;
  return torch_stack(s);
}

StepResult cell_by_torch(const Step& s) {
  warn_once();
  const auto given = [](const Tensor* t) { return t ? OptionalTensor(*t) : std::nullopt; };
  const DirectionWeights& w = s.weights;
  const OptionalTensor b_ih = given(w.b_ih), b_hh = given(w.b_hh);
  const auto run = [&](const auto& op) -> StepResult {
    return {op(s.input, s.hx, *w.w_ih, *w.w_hh, b_ih, b_hh), at::empty({0}, s.input.options())};
  };
  switch (spec(s.cell).torch) {
    case TorchLayer::kLstm:
      TORCH_CHECK(s.cx, "fusedrnn: an LSTM's cell needs cx");
      return at::lstm_cell(s.input, {s.hx, *s.cx}, *w.w_ih, *w.w_hh, b_ih, b_hh);
    case TorchLayer::kGru:
      return run([](const auto&... a) { return at::gru_cell(a...); });
    case TorchLayer::kRnnTanh:
      return run([](const auto&... a) { return at::rnn_tanh_cell(a...); });
    case TorchLayer::kRnnRelu:
      return run([](const auto&... a) { return at::rnn_relu_cell(a...); });
    case TorchLayer::kNone:
      break;
  }
  refuse_cell(s.cell);
}

}  // namespace fusedrnn::ops

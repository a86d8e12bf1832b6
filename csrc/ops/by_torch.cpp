// See by_torch.h.
#include "ops/by_torch.h"

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

#include <mutex>

#include "ops/check.h"
#include "ops/choice.h"

namespace fusedrnn::ops {

CudaMissing& cuda_missing() {
  static auto* const missing = new CudaMissing;  // outlives the interpreter, which owns `warn`
  return *missing;
}

bool Stack::wants_gradients() const {
  return at::GradMode::is_enabled() && any([](const Tensor& t) { return t.requires_grad(); });
}

namespace {

// Lets every warning through but cuDNN's on weights that do not lie in one piece: the modules see
// to that where they can, and where weights were swapped the advice is of no use.
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

// torch.nn's layers, which a GPU runs by cuDNN.
StackResult torch_stack(const Stack& s) {
  const Tensor& w_hh = s.weights[1];
  auto state = [&](const OptionalTensor& given, const c10::SymInt& size) {
    if (given) return given->contiguous();
    const c10::SymInt rows =
        s.batch_sizes ? c10::SymInt((*s.batch_sizes)[0].item<int64_t>()) : s.input.sym_size(1);
    return at::zeros_symint({s.L * s.D, rows, size}, s.input.options());
  };
  // cuDNN goes back only from where it went forward training.
  const bool train = s.train || s.wants_gradients(), bidirectional = s.D == 2;
  const double dropout = s.train ? s.dropout : 0;
  const Tensor h = state(s.hx, w_hh.sym_size(1));
  if (s.cell == Cell::kLstm) {
    const Tensor states[] = {h, state(s.cx, w_hh.sym_size(0) / gates_of(s.cell))};
    return s.batch_sizes ? at::lstm(s.input, *s.batch_sizes, states, s.weights, s.has_biases, s.L,
                                    dropout, train, bidirectional)
                         : at::lstm(s.input, states, s.weights, s.has_biases, s.L, dropout, train,
                                    bidirectional, /*batch_first=*/false);
  }
  auto run = [&](const auto& op) -> StackResult {
    auto [y, h_n] = s.batch_sizes ? op(s.input, *s.batch_sizes, h, s.weights, s.has_biases, s.L,
                                       dropout, train, bidirectional)
                                  : op(s.input, h, s.weights, s.has_biases, s.L, dropout, train,
                                       bidirectional, /*batch_first=*/false);
    return {y, h_n, at::empty({0}, y.options())};
  };
  if (s.cell == Cell::kGru) return run([](const auto&... a) { return at::gru(a...); });
  if (s.cell == Cell::kRnnTanh) return run([](const auto&... a) { return at::rnn_tanh(a...); });
  return run([](const auto&... a) { return at::rnn_relu(a...); });
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

// Rows of the first step, if rows are packed as they should be; else 0.
int64_t packed_batch(const Tensor& batch_sizes, int64_t N) {
  if (batch_sizes.dim() != 1 || batch_sizes.scalar_type() != at::kLong ||
      !batch_sizes.device().is_cpu() || !batch_sizes.is_contiguous() || batch_sizes.numel() == 0) {
    return 0;
  }
  const int64_t* rows = batch_sizes.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < batch_sizes.numel(); ++t) {
    if (rows[t] <= 0 || rows[t] > N - sum || (t > 0 && rows[t] > rows[t - 1])) return 0;
    sum += rows[t];
  }
  return sum == N ? rows[0] : 0;
}

// The problem of a layer, of those above the first one if there are such; nothing where an argument
// does not fit: the layer operator then says which.
std::optional<Problem> problem_of(const Stack& s) {
  const int64_t gates = gates_of(s.cell), per_direction = int64_t(s.weights.size()) / s.L / s.D;
  if (s.input.dim() != (s.batch_sizes ? 2 : 3) || s.weights[1].dim() != 2) return std::nullopt;
  Problem p{};
  p.cell = s.cell;
  p.H = s.weights[1].size(0) / gates;
  p.P = s.weights[1].size(1);
  p.projected = per_direction % 2 == 1;
  p.T = s.batch_sizes ? s.batch_sizes->numel() : s.input.size(0);
  p.B = s.batch_sizes ? packed_batch(*s.batch_sizes, s.input.size(0)) : s.input.size(1);
  p.packed = s.batch_sizes.has_value();
  bool fits = p.T > 0 && p.B > 0 && p.H > 0 && p.P > 0 && (p.projected ? p.P < p.H : p.P == p.H);
  for (int64_t i = 0; fits && i < int64_t(s.weights.size()); ++i) {
    p.I = i < s.D * per_direction ? s.input.size(-1) : s.D * p.P;
    const int64_t kind = i % per_direction;
    const at::IntArrayRef shape = s.weights[i].sizes();
    fits = p.I > 0 && (kind == 0                                  ? shape.equals({gates * p.H, p.I})
                       : kind == 1                                ? shape.equals({gates * p.H, p.P})
                       : p.projected && kind == per_direction - 1 ? shape.equals({p.P, p.H})
                                                                  : shape.equals({gates * p.H}));
  }
  fits = fits && (!s.hx || s.hx->sizes().equals({s.L * s.D, p.B, p.P})) &&
         (!s.cx || (s.cell == Cell::kLstm && s.cx->sizes().equals({s.L * s.D, p.B, p.H})));
  p.training = s.wants_gradients();
  return fits ? std::optional(p) : std::nullopt;
}

// Whether torch.nn's path takes the stack and is estimated to be faster.
bool torch_is_better(const Stack& s, at::ScalarType type) {
  const unsigned allowed = cuda_allowed();
  if (!(allowed & bit_of(cuda::Kernel::kTorch)) || !s.input.is_cuda()) return false;
  if (s.any([](const Tensor& t) { return !is_plain(t); })) return false;
  const bool half = compute_type(type) != type;
  if (!half && type != at::kFloat && type != at::kDouble) return false;
  if (!at::cudnn_is_acceptable(s.input)) return false;
  std::optional<Problem> p = problem_of(s);
  if (!p) return false;
  p->dtypes = all_of(type == at::kDouble ? DType::kFloat64 : DType::kFloat32);
  const int device = s.input.device().index();
  return torch_is_cheaper(*p, {int(s.D), s.L, rnn_takes_tf32()}, cuda_device(device),
                          experience_of(device), allowed, half);
}

#else

bool torch_is_better(const Stack&, at::ScalarType) { return false; }

#endif

}  // namespace

std::optional<StackResult> by_torch(const Stack& s, at::ScalarType type) {
  if (!has_kernels(s.input)) {
    warn_once();
    return torch_stack(s);
  }
  if (!torch_is_better(s, type)) return std::nullopt;
  const QuietHandler quiet;
  return torch_stack(s);
}

std::tuple<Tensor, Tensor> cell_by_torch(const Tensor& input, const Tensor& hx,
                                         const OptionalTensor& cx, const Tensor& w_ih,
                                         const Tensor& w_hh, const OptionalTensor& b_ih,
                                         const OptionalTensor& b_hh, c10::string_view mode) {
  warn_once();
  const Cell cell = cell_of(mode);
  if (cell == Cell::kLstm) {
    TORCH_CHECK(cx, "fusedrnn: an LSTM's cell needs cx");
    return at::lstm_cell(input, {hx, *cx}, w_ih, w_hh, b_ih, b_hh);
  }
  auto run = [&](const auto& op) -> std::tuple<Tensor, Tensor> {
    return {op(input, hx, w_ih, w_hh, b_ih, b_hh), at::empty({0}, input.options())};
  };
  if (cell == Cell::kGru) return run([](const auto&... a) { return at::gru_cell(a...); });
  if (cell == Cell::kRnnTanh) return run([](const auto&... a) { return at::rnn_tanh_cell(a...); });
  return run([](const auto&... a) { return at::rnn_relu_cell(a...); });
}

}  // namespace fusedrnn::ops

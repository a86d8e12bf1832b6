// The stack of layers, with dropout between them, and the cell: compositions of the layer operator,
// so that autograd and tracing see through them. On a GPU, plain tensors go to torch's own path
// (cuDNN) where that is estimated to be faster.
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>

#include "ops/check.h"
#include "ops/choice.h"

namespace fusedrnn::ops {
namespace {

// Half precision is stored, float32 is computed with: one conversion a call on each side.
at::ScalarType compute_type(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

using Result = std::tuple<Tensor, Tensor, Tensor>;

#ifdef FUSEDRNN_WITH_CUDA

// What a stack is asked for, in the order of torch's own operators.
struct Stack {
  const Tensor& input;
  const OptionalTensor &batch_sizes, &hx, &cx;
  at::TensorList weights;
  Cell cell;
  bool has_biases;
  int64_t L;
  double dropout;
  bool train;
  int64_t D;

  template <class Condition>
  bool any(const Condition& condition) const {
    if (condition(input) || (hx && condition(*hx)) || (cx && condition(*cx))) return true;
    for (const Tensor& weight : weights) {
      if (condition(weight)) return true;
    }
    return false;
  }
};

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
  static constexpr int64_t kMark = 0;  // a plan does not read them
  if (s.batch_sizes) p.offsets = &kMark;
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
  p.training =
      at::GradMode::is_enabled() && s.any([](const Tensor& t) { return t.requires_grad(); });
  return fits ? std::optional(p) : std::nullopt;
}

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
Result torch_stack(const Stack& s, const Problem& p) {
  auto state = [&](const OptionalTensor& given, int64_t size) {
    return given ? given->contiguous() : at::zeros({s.L * s.D, p.B, size}, s.input.options());
  };
  // cuDNN goes back only from where it went forward training.
  const bool train = s.train || p.training, bidirectional = s.D == 2;
  const double dropout = s.train ? s.dropout : 0;
  const Tensor h = state(s.hx, p.P);
  if (s.cell == Cell::kLstm) {
    const Tensor states[] = {h, state(s.cx, p.H)};
    return s.batch_sizes ? at::lstm(s.input, *s.batch_sizes, states, s.weights, s.has_biases, s.L,
                                    dropout, train, bidirectional)
                         : at::lstm(s.input, states, s.weights, s.has_biases, s.L, dropout, train,
                                    bidirectional, /*batch_first=*/false);
  }
  auto run = [&](const auto& op) -> Result {
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

// torch.nn's result where its path is the better one; `type` is what it would compute in.
std::optional<Result> by_torch(const Stack& s, at::ScalarType type) {
  const unsigned allowed = cuda_allowed();
  if (!(allowed & bit_of(cuda::Kernel::kTorch)) || !s.input.is_cuda()) return std::nullopt;
  if (s.any([](const Tensor& t) { return !is_plain(t); })) return std::nullopt;
  const bool half = compute_type(type) != type;
  if (!half && type != at::kFloat && type != at::kDouble) return std::nullopt;
  if (!at::cudnn_is_acceptable(s.input)) return std::nullopt;
  std::optional<Problem> p = problem_of(s);
  if (!p) return std::nullopt;
  p->dtype = type == at::kDouble ? DType::kFloat64 : DType::kFloat32;
  const cuda::Device& device = cuda_device(s.input.device().index());
  if (!torch_is_cheaper(*p, s.D, device, allowed, half)) return std::nullopt;
  const QuietHandler quiet;
  return torch_stack(s, *p);
}

#endif

Result stack_of(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                const OptionalTensor& cx, at::TensorList weights, c10::string_view mode,
                bool has_biases, int64_t num_layers, double dropout, bool train, bool bidirectional,
                [[maybe_unused]] bool may_go_to_torch) {
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
  auto same_type = [&](const char* name, const OptionalTensor& t) {
    TORCH_CHECK(!t || autocast || t->scalar_type() == outside, "fusedrnn: ", name, " must be ",
                outside, " as input is, got ", t->scalar_type());
  };
  for (const Tensor& weight : w) same_type("weights", weight);
  same_type("hx", h);
  same_type("cx", c);
#ifdef FUSEDRNN_WITH_CUDA
  if (may_go_to_torch) {
    const Stack s{input,      batch_sizes, hx,      cx,    weights, cell,
                  has_biases, num_layers,  dropout, train, D};
    if (std::optional<Result> result = by_torch(s, outside)) return *std::move(result);
  }
#endif
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

// One step: a layer of one time step, whose rows are the batch. It stays here: cuDNN has no cell.
std::tuple<Tensor, Tensor> cell(const Tensor& input, const Tensor& hx, const OptionalTensor& cx,
                                const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                                const OptionalTensor& b_hh, c10::string_view mode) {
  TORCH_CHECK(b_ih.has_value() == b_hh.has_value(),
              "fusedrnn: b_ih and b_hh must both be given, or neither");
  if (auto result = step_on_cpu(input, hx, cx, w_ih, w_hh, b_ih, b_hh, mode)) return *result;
  std::vector<Tensor> weights{w_ih, w_hh};
  if (b_ih) weights.insert(weights.end(), {*b_ih, *b_hh});
  auto lift = [](const Tensor& t) { return t.unsqueeze(0); };
  const OptionalTensor c = cx ? OptionalTensor(lift(*cx)) : std::nullopt;
  auto [y, h_n, c_n] = stack_of(lift(input), std::nullopt, lift(hx), c, weights, mode,
                                b_ih.has_value(), 1, 0.0, false, false, /*may_go_to_torch=*/false);
  return {h_n.squeeze(0), mode == "LSTM" ? c_n.squeeze(0) : c_n};
}

}  // namespace fusedrnn::ops

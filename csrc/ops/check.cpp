// See check.h.
#include "ops/check.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace fusedrnn::ops {

Cell cell_of(c10::string_view mode) {
  if (mode == "LSTM") return Cell::kLstm;
  if (mode == "GRU") return Cell::kGru;
  if (mode == "RNN_TANH") return Cell::kRnnTanh;
  if (mode == "RNN_RELU") return Cell::kRnnRelu;
  TORCH_CHECK(false, "fusedrnn: mode must be LSTM, GRU, RNN_TANH or RNN_RELU, got ", mode);
}

DType dtype_of(at::ScalarType type) {
  if (type == at::kFloat) return DType::kFloat32;
  if (type == at::kDouble) return DType::kFloat64;
  TORCH_CHECK(false, "fusedrnn: a layer computes in float32 or float64, got ", type);
}

int64_t weights_of_direction(Cell cell, bool has_biases, int64_t count) {
  const int64_t plain = has_biases ? 4 : 2;
  if (cell == Cell::kLstm && (count == plain + 1 || count == 2 * (plain + 1))) return plain + 1;
  TORCH_CHECK(count == plain || count == 2 * plain, "fusedrnn: a layer takes ", plain, " or ",
              2 * plain, " weights", cell == Cell::kLstm ? " (one more a direction projected)" : "",
              ", got ", count);
  return plain;
}

void check_tensor(const char* name, const Tensor& tensor, at::IntArrayRef shape,
                  const char* symbols, const Tensor& input) {
  TORCH_CHECK_TYPE(tensor.defined(), "fusedrnn: ", name, " must be a Tensor, got None");
  TORCH_CHECK(tensor.sizes() == shape, "fusedrnn: ", name, " must be ", shape, " ", symbols,
              ", got ", tensor.sizes());
  TORCH_CHECK(tensor.device() == input.device(), "fusedrnn: ", name, " must be on ", input.device(),
              " as input is, got ", tensor.device());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "fusedrnn: ", name, " must be ",
              input.scalar_type(), " as input is, got ", tensor.scalar_type());
}

namespace {

void check_layout(const char* name, const Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.defined(), "fusedrnn: ", name, " must be a Tensor, got None");
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor.is_nested(), "fusedrnn: ", name,
                              " must not be nested: use torch.nn.utils.rnn.pack_sequence");
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == at::kStrided, "fusedrnn: ", name,
                              " must be strided, got ", tensor.layout(), ": call to_dense()");
}

}  // namespace

void check_devices(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                   at::TensorList weights) {
  check_layout("input", input);
  for (const Tensor& weight : weights) check_layout("weights", weight);
  if (hx) check_layout("hx", *hx);
  if (cx) check_layout("cx", *cx);
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

bool is_plain(const Tensor& tensor) {
  constexpr auto kPlain =
      c10::autograd_dispatch_keyset | c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::ADInplaceOrView,
                           c10::DispatchKey::BackendSelect});
  const auto watching = c10::impl::tls_local_dispatch_key_set().included_;
  const auto odd = (tensor.key_set() | watching) - kPlain;
  return odd.highestFunctionalityKey() == c10::DispatchKey::Undefined &&
         !tensor._fw_grad(/*level=*/0).defined();
}

namespace {

// Contiguous; refused where its storage was freed or cut short behind its back, so that sizes lie.
Tensor in_memory(const Tensor& tensor) {
  const size_t offset = tensor.storage_offset(), bytes = tensor.storage().nbytes();
  const size_t needed = tensor.is_contiguous()
                            ? (offset + tensor.numel()) * tensor.element_size()
                            : at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(),
                                                               tensor.element_size(), offset);
  TORCH_CHECK(needed <= bytes || tensor.numel() == 0, "fusedrnn: a tensor of ", tensor.sizes(),
              " needs a storage of ", needed, " bytes, got one of ", bytes,
              ": it must not be resized or freed before the call");
  return tensor.contiguous();
}

std::vector<int64_t> packed_offsets(const Tensor& batch_sizes, int64_t N) {
  const Tensor sizes = in_memory(batch_sizes);
  const int64_t* rows = sizes.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets(sizes.numel() + 1, 0);
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    TORCH_CHECK(rows[t] > 0 && (t == 0 || rows[t] <= rows[t - 1]),
                "fusedrnn: batch_sizes must be positive and never rise, got ", rows[t], " at step ",
                t);
    // Compared like this no sum overflows.
    TORCH_CHECK(rows[t] <= N - offsets[t], "fusedrnn: batch_sizes must add up to the ", N,
                " rows of input, got more by step ", t);
    offsets[t + 1] = offsets[t] + rows[t];
  }
  TORCH_CHECK(offsets.back() == N, "fusedrnn: batch_sizes must add up to the ", N,
              " rows of input, got ", offsets.back());
  return offsets;
}

}  // namespace

Call fit(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
         const OptionalTensor& cx, at::TensorList weights, c10::string_view mode, bool has_biases,
         bool read_sizes, Weights type) {
  TORCH_CHECK_TYPE(input.defined(), "fusedrnn: input must be a Tensor, got None");
  Call call{};
  call.cell = cell_of(mode);
  const bool packed = batch_sizes.has_value();
  TORCH_CHECK(input.dim() == (packed ? 2 : 3), "fusedrnn: input must be ",
              packed ? "2-D (N, I) with batch_sizes" : "3-D (T, B, I)", ", got ", input.sizes());
  call.per_direction = weights_of_direction(call.cell, has_biases, int64_t(weights.size()));
  call.D = int64_t(weights.size()) / call.per_direction;

  Problem& p = call.problem;
  p.cell = call.cell;
  p.projected = call.per_direction % 2 == 1;
  TORCH_CHECK(weights[0].dim() == 2 && weights[1].dim() == 2,
              "fusedrnn: w_ih and w_hh must be matrices, got ", weights[0].sizes(), " and ",
              weights[1].sizes());
  const int64_t gates = gates_of(p.cell);
  p.I = weights[0].size(1);
  p.H = weights[0].size(0) / gates;
  p.P = weights[1].size(1);
  TORCH_CHECK(input.size(-1) == p.I, "input.size(-1) must be equal to input_size. Expected ", p.I,
              ", got ", input.size(-1));
  TORCH_CHECK(p.I > 0 && p.H > 0 && p.P > 0,
              "fusedrnn: input_size, hidden_size and the size of h must be greater than zero, got ",
              p.I, ", ", p.H, " and ", p.P);
  p.T = packed ? 0 : input.size(0);
  p.B = packed ? 0 : input.size(1);
  if (packed) {
    TORCH_CHECK(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == at::kLong &&
                    batch_sizes->device().is_cpu(),
                "fusedrnn: batch_sizes must be an int64 vector on the CPU, got ",
                batch_sizes->scalar_type(), " ", batch_sizes->sizes(), " on ",
                batch_sizes->device());
    p.T = batch_sizes->numel();
  }
  TORCH_CHECK(p.T > 0, "Expected sequence length to be larger than 0 in RNN");
  if (packed && read_sizes) {
    call.offsets = packed_offsets(*batch_sizes, input.size(0));
    p.B = call.offsets[1];
  } else if (packed && hx) {
    p.B = hx->dim() > 1 ? hx->size(1) : 0;
  } else if (packed && cx) {
    p.B = cx->dim() > 1 ? cx->size(1) : 0;
  }
  const Tensor& like = type == Weights::kAsInput ? input : weights[0];
  for (int64_t d = 0; d < call.D; ++d) {
    const Tensor* w = weights.data() + d * call.per_direction;
    check_tensor("w_ih", w[0], {gates * p.H, p.I}, "(G*H, I)", like);
    check_tensor("w_hh", w[1], {gates * p.H, p.P}, "(G*H, P)", like);
    if (has_biases) {
      check_tensor("b_ih", w[2], {gates * p.H}, "(G*H)", like);
      check_tensor("b_hh", w[3], {gates * p.H}, "(G*H)", like);
    }
    if (p.projected) {
      check_tensor("w_hr", w[call.per_direction - 1], {p.P, p.H}, "(P, H)", like);
    } else {
      TORCH_CHECK(p.P == p.H, "fusedrnn: w_hh must be ", at::IntArrayRef({gates * p.H, p.H}),
                  " (G*H, H), got ", w[1].sizes());
    }
  }
  if (hx) check_tensor("hx", *hx, {call.D, p.B, p.P}, "(D, B, P)", input);
  TORCH_CHECK(!cx || p.cell == Cell::kLstm, "fusedrnn: only an LSTM takes cx, got one for ", mode);
  if (cx) check_tensor("cx", *cx, {call.D, p.B, p.H}, "(D, B, H)", input);
  return call;
}

Call check(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
           const OptionalTensor& cx, at::TensorList weights, c10::string_view mode, bool has_biases,
           bool train, Weights type) {
  Call call = fit(input, batch_sizes, hx, cx, weights, mode, has_biases, /*read_sizes=*/true, type);
  const bool low = type == Weights::kBFloat16 && input.scalar_type() == at::kBFloat16;
  call.problem.dtypes = all_of(low ? DType::kFloat32 : dtype_of(input.scalar_type()));
  if (type == Weights::kBFloat16) call.problem.dtypes.stored = DType::kBFloat16;
  call.problem.training = train;
  call.weights.reserve(weights.size());
  for (const Tensor& weight : weights) call.weights.push_back(in_memory(weight));
  if (hx) call.hx = in_memory(*hx);
  if (cx) call.cx = in_memory(*cx);
  call.input = in_memory(input);
  return call;
}

void fit_backward(const Call& call, const OptionalTensor& grad_output,
                  const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                  const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                  at::TensorList weights, const Tensor& output, const c10::List<bool>& needs) {
  const int64_t D = call.D, B = call.problem.B, H = call.problem.H, P = call.problem.P;
  TORCH_CHECK(needs.size() == 3 + weights.size(), "fusedrnn: needs must have an entry for input, ",
              "hx, cx and each of the ", weights.size(), " weights, got ", needs.size());
  TORCH_CHECK((hx || !needs[1]) && (cx || !needs[2]),
              "fusedrnn: the gradient of a state that was not given was asked for");
  std::vector<int64_t> y_shape(input.sizes().begin(), input.sizes().end() - 1);
  y_shape.push_back(D * P);
  check_tensor("output", output, y_shape, "(*, D*P)", input);
  if (grad_output) check_tensor("grad_output", *grad_output, y_shape, "(*, D*P)", input);
  if (grad_h_n) check_tensor("grad_h_n", *grad_h_n, {D, B, P}, "(D, B, P)", input);
  if (grad_c_n && call.cell == Cell::kLstm)
    check_tensor("grad_c_n", *grad_c_n, {D, B, H}, "(D, B, H)", input);
}

BackwardCall check_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                            const OptionalTensor& grad_c_n, const Tensor& input,
                            const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                            const OptionalTensor& cx, at::TensorList weights, const Tensor& output,
                            const Tensor& reserve, c10::string_view mode, bool has_biases,
                            const c10::List<bool>& needs,
                            int64_t (*reserve_width)(const Problem& problem)) {
  BackwardCall call{};
  static_cast<Call&>(call) = check(input, batch_sizes, hx, cx, weights, mode, has_biases, true);
  fit_backward(call, grad_output, grad_h_n, grad_c_n, input, hx, cx, weights, output, needs);
  check_tensor("reserve", reserve, {call.D, call.rows(), reserve_width(call.direction(0))},
               "(D, N, width), what layer(train=True) made", call.input);
  if (grad_output) call.dy = in_memory(*grad_output);
  if (grad_h_n) call.dh_n = in_memory(*grad_h_n);
  if (grad_c_n && call.cell == Cell::kLstm) call.dc_n = in_memory(*grad_c_n);
  call.y = in_memory(output);
  call.reserve = in_memory(reserve);

  auto gradient = [&](bool wanted, const Tensor& of) {
    return !wanted ? Tensor() : call.problem.B == 0 ? at::zeros_like(of) : at::empty_like(of);
  };
  call.dx = gradient(needs[0], call.input);
  call.dhx = gradient(needs[1], call.hx);
  call.dcx = gradient(needs[2], call.cx);
  for (size_t i = 0; i < call.weights.size(); ++i) {
    call.dweights.push_back(gradient(needs[3 + i], call.weights[i]));
  }
  return call;
}

std::vector<Tensor> BackwardCall::results() const {
  std::vector<Tensor> asked_for;
  for (const Tensor& gradient : {dx, dhx, dcx}) {
    if (gradient.defined()) asked_for.push_back(gradient);
  }
  for (const Tensor& gradient : dweights) {
    if (gradient.defined()) asked_for.push_back(gradient);
  }
  return asked_for;
}

Problem Call::direction(int64_t d) const {
  Problem p = problem;
  p.reverse = d == 1;
  p.packed = !offsets.empty();
  p.offsets = p.packed ? offsets.data() : nullptr;
  return p;
}

}  // namespace fusedrnn::ops

// The CPU kernels of layer and layer_backward: check, allocate, fill the parameters, call.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>  // and omp.h
#include <torch/library.h>

#include <algorithm>

#include "ops/layer.h"

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
  TORCH_CHECK(false, "fusedrnn: a layer computes in float32 or float64, got ", type,
              "; call the stack operator or the modules, which convert");
}

int64_t weights_of_direction(Cell cell, bool has_biases, int64_t count) {
  const int64_t plain = has_biases ? 4 : 2;
  if (cell == Cell::kLstm && (count == plain + 1 || count == 2 * (plain + 1))) return plain + 1;
  TORCH_CHECK(count == plain || count == 2 * plain, "fusedrnn: a layer takes ", plain, " or ",
              2 * plain, " weights", cell == Cell::kLstm ? " (one more a direction projected)" : "",
              ", got ", count);
  return plain;
}

Team team() {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return {[](int wanted, void (*body)(void*, int, int), void* context) {
  // torch's own pool: the wheel's libgomp is the one this is linked to.
#pragma omp parallel
            {
              const int n = std::min(wanted, omp_get_num_threads()), id = omp_get_thread_num();
              if (id < n) body(context, id, n);
            }
          },
          threads};
}

namespace {

// A layer's arguments once they are known to fit together; tensors here are contiguous.
struct Call {
  Cell cell;
  int64_t D, per_direction;
  Problem problem;  // of the forward direction
  std::vector<int64_t> offsets;
  Tensor input, hx, cx;
  std::vector<Tensor> weights;

  const Tensor& weight(int64_t direction, int64_t i) const {
    return weights[direction * per_direction + i];
  }
};

void check_tensor(const char* name, const Tensor& tensor, at::IntArrayRef shape,
                  const char* symbols, const Tensor& input) {
  TORCH_CHECK(tensor.sizes() == shape, "fusedrnn: ", name, " must be ", shape, " ", symbols,
              ", got ", tensor.sizes());
  TORCH_CHECK(tensor.device() == input.device(), "fusedrnn: ", name, " must be on ", input.device(),
              " as input is, got ", tensor.device());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), "fusedrnn: ", name, " must be ",
              input.scalar_type(), " as input is, got ", tensor.scalar_type());
}

std::vector<int64_t> packed_offsets(const Tensor& batch_sizes, int64_t N) {
  TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == at::kLong &&
                  batch_sizes.device().is_cpu(),
              "fusedrnn: batch_sizes must be an int64 vector on the CPU, got ",
              batch_sizes.scalar_type(), " ", batch_sizes.sizes(), " on ", batch_sizes.device());
  TORCH_CHECK(batch_sizes.numel() > 0, "Expected sequence length to be larger than 0 in RNN");
  const Tensor sizes = batch_sizes.contiguous();
  const int64_t* rows = sizes.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets(sizes.numel() + 1, 0);
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    TORCH_CHECK(rows[t] > 0 && (t == 0 || rows[t] <= rows[t - 1]),
                "fusedrnn: batch_sizes must be positive and never rise, got ", rows[t], " at step ",
                t);
    offsets[t + 1] = offsets[t] + rows[t];
  }
  TORCH_CHECK(offsets.back() == N, "fusedrnn: batch_sizes must add up to the ", N,
              " rows of input, got ", offsets.back());
  return offsets;
}

Call check(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
           const OptionalTensor& cx, at::TensorList weights, c10::string_view mode, bool has_biases,
           bool train) {
  Call call{};
  call.cell = cell_of(mode);
  const bool packed = batch_sizes.has_value();
  TORCH_CHECK(input.dim() == (packed ? 2 : 3), "fusedrnn: input must be ",
              packed ? "2-D (N, I) with batch_sizes" : "3-D (T, B, I)", ", got ", input.sizes());
  call.per_direction = weights_of_direction(call.cell, has_biases, int64_t(weights.size()));
  call.D = int64_t(weights.size()) / call.per_direction;
  const bool projected = call.per_direction % 2 == 1;

  Problem& p = call.problem;
  p.cell = call.cell;
  p.dtype = dtype_of(input.scalar_type());
  p.training = train;
  p.projected = projected;
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
  if (packed) {
    call.offsets = packed_offsets(*batch_sizes, input.size(0));
    p.T = int64_t(call.offsets.size()) - 1;
    p.B = call.offsets[1];
  } else {
    p.T = input.size(0);
    p.B = input.size(1);
    TORCH_CHECK(p.T > 0, "Expected sequence length to be larger than 0 in RNN");
  }
  call.weights.reserve(weights.size());
  for (int64_t d = 0; d < call.D; ++d) {
    const Tensor* w = weights.data() + d * call.per_direction;
    check_tensor("w_ih", w[0], {gates * p.H, p.I}, "(G*H, I)", input);
    check_tensor("w_hh", w[1], {gates * p.H, p.P}, "(G*H, P)", input);
    if (has_biases) {
      check_tensor("b_ih", w[2], {gates * p.H}, "(G*H)", input);
      check_tensor("b_hh", w[3], {gates * p.H}, "(G*H)", input);
    }
    if (projected) {
      check_tensor("w_hr", w[call.per_direction - 1], {p.P, p.H}, "(P, H)", input);
    } else {
      TORCH_CHECK(p.P == p.H, "fusedrnn: w_hh must be ", at::IntArrayRef({gates * p.H, p.H}),
                  " (G*H, H), got ", w[1].sizes());
    }
    for (int64_t i = 0; i < call.per_direction; ++i) call.weights.push_back(w[i].contiguous());
  }
  if (hx) {
    check_tensor("hx", *hx, {call.D, p.B, p.P}, "(D, B, P)", input);
    call.hx = hx->contiguous();
  }
  TORCH_CHECK(!cx || p.cell == Cell::kLstm, "fusedrnn: only an LSTM takes cx, got one for ", mode);
  if (cx) {
    check_tensor("cx", *cx, {call.D, p.B, p.H}, "(D, B, H)", input);
    call.cx = cx->contiguous();
  }
  call.input = input.contiguous();
  return call;
}

Problem direction(const Call& call, int64_t d) {
  Problem p = call.problem;
  p.reverse = d == 1;
  p.offsets = call.offsets.empty() ? nullptr : call.offsets.data();
  return p;
}

const void* read(const Tensor& tensor, int64_t element = 0) {
  if (!tensor.defined()) return nullptr;
  return static_cast<const char*>(tensor.const_data_ptr()) + element * tensor.element_size();
}

void* write(const Tensor& tensor, int64_t element = 0) {
  if (!tensor.defined()) return nullptr;
  return static_cast<char*>(tensor.data_ptr()) + element * tensor.element_size();
}

LayerResult layer_cpu(const Tensor& input, const OptionalTensor& batch_sizes,
                      const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
                      c10::string_view mode, bool has_biases, bool train) {
  const Call call = check(input, batch_sizes, hx, cx, weights, mode, has_biases, train);
  const Problem& shape = call.problem;
  const auto options = call.input.options();
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const bool lstm = call.cell == Cell::kLstm;
  const int64_t rows = batch_sizes ? call.input.size(0) : shape.T * B;
  Tensor output =
      batch_sizes ? at::empty({rows, D * P}, options) : at::empty({shape.T, B, D * P}, options);
  Tensor h_n = at::empty({D, B, P}, options);
  Tensor c_n = lstm ? at::empty({D, B, H}, options) : at::empty({0}, options);
  const int64_t width = cpu::reserve_width(direction(call, 0));
  Tensor reserve = train ? at::empty({D, rows, width}, options) : at::empty({0}, options);
  if (B == 0) return {output, h_n, c_n, reserve};

  const Team workers = team();
  for (int64_t d = 0; d < D; ++d) {
    ForwardParams a{};
    a.problem = direction(call, d);
    const Plan plan = cpu::plan_forward(a.problem, workers.threads);
    const Tensor workspace = at::empty({plan.workspace_bytes}, options.dtype(at::kByte));
    a.x = read(call.input);
    a.h0 = read(call.hx, d * B * P);
    a.c0 = read(call.cx, d * B * H);
    a.w_ih = read(call.weight(d, 0));
    a.w_hh = read(call.weight(d, 1));
    a.b_ih = has_biases ? read(call.weight(d, 2)) : nullptr;
    a.b_hh = has_biases ? read(call.weight(d, 3)) : nullptr;
    a.w_hr = shape.projected ? read(call.weight(d, call.per_direction - 1)) : nullptr;
    a.y = write(output, d * P);
    a.ldy = D * P;
    a.h_n = write(h_n, d * B * P);
    a.c_n = lstm ? write(c_n, d * B * H) : nullptr;
    a.reserve = train ? write(reserve, d * rows * width) : nullptr;
    a.workspace = write(workspace);
    cpu::forward(a, plan, workers);
  }
  return {output, h_n, c_n, reserve};
}

std::vector<Tensor> layer_backward_cpu(const OptionalTensor& grad_output,
                                       const OptionalTensor& grad_h_n,
                                       const OptionalTensor& grad_c_n, const Tensor& input,
                                       const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                                       const OptionalTensor& cx, at::TensorList weights,
                                       const Tensor& output, const Tensor& reserve,
                                       c10::string_view mode, bool has_biases,
                                       const c10::List<bool>& needs) {
  const Call call = check(input, batch_sizes, hx, cx, weights, mode, has_biases, true);
  const Problem& shape = call.problem;
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const int64_t rows = batch_sizes ? call.input.size(0) : shape.T * B;
  const int64_t width = cpu::reserve_width(direction(call, 0));
  TORCH_CHECK(needs.size() == 3 + weights.size(), "fusedrnn: needs must have an entry for input, ",
              "hx, cx and each of the ", weights.size(), " weights, got ", needs.size());
  TORCH_CHECK((hx || !needs[1]) && (cx || !needs[2]),
              "fusedrnn: the gradient of a state that was not given was asked for");
  check_tensor("reserve", reserve, {D, rows, width}, "(D, N, width), what layer(train=True) made",
               call.input);
  std::vector<int64_t> y_shape(input.sizes().begin(), input.sizes().end() - 1);
  y_shape.push_back(D * P);
  check_tensor("output", output, y_shape, "(*, D*P)", call.input);
  Tensor dy, dh_n, dc_n;
  if (grad_output) {
    check_tensor("grad_output", *grad_output, y_shape, "(*, D*P)", call.input);
    dy = grad_output->contiguous();
  }
  if (grad_h_n) {
    check_tensor("grad_h_n", *grad_h_n, {D, B, P}, "(D, B, P)", call.input);
    dh_n = grad_h_n->contiguous();
  }
  if (grad_c_n && call.cell == Cell::kLstm) {
    check_tensor("grad_c_n", *grad_c_n, {D, B, H}, "(D, B, H)", call.input);
    dc_n = grad_c_n->contiguous();
  }
  const Tensor y = output.contiguous(), kept = reserve.contiguous();

  auto gradient = [&](bool wanted, const Tensor& of) {
    return !wanted ? Tensor() : B == 0 ? at::zeros_like(of) : at::empty_like(of);
  };
  const Tensor dx = gradient(needs[0], call.input);
  const Tensor dhx = gradient(needs[1], call.hx), dcx = gradient(needs[2], call.cx);
  std::vector<Tensor> dweights;
  for (size_t i = 0; i < call.weights.size(); ++i) {
    dweights.push_back(gradient(needs[3 + i], call.weights[i]));
  }
  const Team workers = team();
  for (int64_t d = 0; B > 0 && d < D; ++d) {
    const Tensor* dw = dweights.data() + d * call.per_direction;
    BackwardParams a{};
    a.problem = direction(call, d);
    const Plan plan = cpu::plan_backward(a.problem, workers.threads);
    const Tensor workspace =
        at::empty({plan.workspace_bytes}, call.input.options().dtype(at::kByte));
    a.x = read(call.input);
    a.h0 = read(call.hx, d * B * P);
    a.c0 = read(call.cx, d * B * H);
    a.w_ih = read(call.weight(d, 0));
    a.w_hh = read(call.weight(d, 1));
    a.w_hr = shape.projected ? read(call.weight(d, call.per_direction - 1)) : nullptr;
    a.y = read(y, d * P);
    a.ldy = D * P;
    a.reserve = read(kept, d * rows * width);
    a.dy = read(dy, d * P);
    a.lddy = D * P;
    a.dh_n = read(dh_n, d * B * P);
    a.dc_n = read(dc_n, d * B * H);
    a.dx = write(dx);
    a.accumulate_dx = d > 0;
    a.dh0 = write(dhx, d * B * P);
    a.dc0 = write(dcx, d * B * H);
    a.dw_ih = write(dw[0]);
    a.dw_hh = write(dw[1]);
    a.db_ih = has_biases ? write(dw[2]) : nullptr;
    a.db_hh = has_biases ? write(dw[3]) : nullptr;
    a.dw_hr = shape.projected ? write(dw[call.per_direction - 1]) : nullptr;
    a.workspace = write(workspace);
    cpu::backward(a, plan, workers);
  }

  std::vector<Tensor> result;
  for (const Tensor& gradient : {dx, dhx, dcx}) {
    if (gradient.defined()) result.push_back(gradient);
  }
  for (const Tensor& gradient : dweights) {
    if (gradient.defined()) result.push_back(gradient);
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("layer", layer_cpu);
  m.impl("layer_backward", layer_backward_cpu);
}

}  // namespace fusedrnn::ops

// The CPU kernels of layer and layer_backward: check, allocate, fill the parameters, call.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>  // and omp.h
#include <torch/library.h>

#include <algorithm>

#include "ops/check.h"

namespace fusedrnn::ops {

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
  const int64_t width = cpu::reserve_width(call.direction(0));
  Tensor reserve = train ? at::empty({D, rows, width}, options) : at::empty({0}, options);
  if (B == 0) return {output, h_n, c_n, reserve};

  const Team workers = team();
  for (int64_t d = 0; d < D; ++d) {
    ForwardParams a{};
    a.problem = call.direction(d);
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
  const int64_t width = cpu::reserve_width(call.direction(0));
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
    a.problem = call.direction(d);
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

// The CPU kernels of layer and layer_backward: check, allocate, fill the parameters, call.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <pthread.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/halves.h"
#include "ops/check.h"
#include "ops/memory.h"
#include "ops/openmp.h"

namespace fusedrnn::ops {

cpu::Team team() {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  return {[](int wanted, void (*body)(void*, int, int), void* context) {
            in_parallel([=] {
              const int n = std::min(wanted, omp_get_num_threads()), id = omp_get_thread_num();
              if (id < n) body(context, id, n);
            });
          },
          threads};
}

namespace {

// GNU's OpenMP hangs in a forked child whose parent had used it: the child believes in threads that
// only the parent has. Without threads at the fork, each makes its own when it next needs some.
[[maybe_unused]] const int kForks = pthread_atfork([] { dissolve_threads(); }, nullptr, nullptr);

// bfloat16 as float32 and back. A call of Tensor::to takes 0.7 us, which counts where there is
// little to convert.
constexpr int64_t kLittle = 4096;

// Other tensors pass.
Tensor widened(const Tensor& tensor) {
  if (!tensor.defined() || tensor.scalar_type() != at::kBFloat16) return tensor;
  const int64_t n = tensor.numel();
  if (n > kLittle) return tensor.to(at::kFloat);
  Tensor wide = at::empty(tensor.sizes(), tensor.options().dtype(at::kFloat));
  const auto* from = static_cast<const uint16_t*>(tensor.const_data_ptr());
  auto* to = static_cast<uint32_t*>(wide.data_ptr());
  for (int64_t i = 0; i < n; ++i) to[i] = uint32_t(from[i]) << 16;
  return wide;
}
Tensor narrowed(const Tensor& tensor) {
  const int64_t n = tensor.numel();
  if (n > kLittle) return tensor.to(at::kBFloat16);
  Tensor narrow = at::empty(tensor.sizes(), tensor.options().dtype(at::kBFloat16));
  const auto* from = static_cast<const uint32_t*>(tensor.const_data_ptr());
  auto* to = static_cast<uint16_t*>(narrow.data_ptr());
  for (int64_t i = 0; i < n; ++i) {  // to nearest, ties to even; nan stays nan
    const uint32_t bits = from[i], rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i] = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
  return narrow;
}

// How the directions of a layer share the threads and a workspace: at once by half of the threads
// each, or one after the other by all.
struct Work {
  Work(const Call& call, const cpu::Team& workers, cpu::Plan (*plan_of)(const Problem&, int))
      : D(call.D),
        workers(workers),
        each(cpu::threads_of_direction(call.direction(0), int(call.D), workers.threads)),
        plan(plan_of(call.direction(0), each)) {}

  bool at_once() const { return each < workers.threads; }
  int64_t begin(int64_t d) const { return at_once() ? d * plan.workspace_bytes : 0; }
  int64_t bytes() const { return begin(D - 1) + plan.workspace_bytes; }

  template <class Run>
  void run(const Run& run) const {
    if (at_once()) return cpu::in_halves(workers, run);
    for (int64_t d = 0; d < D; ++d) run(workers, d);
  }

  const int64_t D;
  const cpu::Team workers;
  const int each;
  const cpu::Plan plan;
};

LayerResult run_forward(const Call& call) {
  const Problem& shape = call.problem;
  const bool packed = !call.offsets.empty(), has_biases = call.per_direction >= 4;
  const bool train = shape.training;
  const auto options = call.input.options();
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const bool lstm = call.cell == Cell::kLstm;
  const int64_t rows = call.rows();
  Tensor output = in_huge_pages(packed ? at::empty({rows, D * P}, options)
                                       : at::empty({shape.T, B, D * P}, options));
  Tensor h_n = at::empty({D, B, P}, options);
  Tensor c_n = lstm ? at::empty({D, B, H}, options) : at::empty({0}, options);
  const int64_t width = cpu::reserve_width(call.direction(0));
  Tensor reserve = train ? reused_empty({D, rows, width}, options) : at::empty({0}, options);
  if (B == 0) return {output, h_n, c_n, reserve};

  const cpu::Team workers = team();
  const Work work(call, workers, cpu::plan_forward);
  const Tensor workspace = workspace_of(work.bytes(), options);
  cpu::ForwardParams params[2]{};
  for (int64_t d = 0; d < D; ++d) {
    cpu::ForwardParams& a = params[d];
    a.problem = call.direction(d);
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
    a.workspace = write(workspace, work.begin(d));
  }
  work.run([&](const cpu::Team& some, int64_t d) { cpu::forward(params[d], work.plan, some); });
  return {output, h_n, c_n, reserve};
}

LayerResult layer_cpu(const Tensor& input, const OptionalTensor& batch_sizes,
                      const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
                      c10::string_view mode, bool has_biases, bool train) {
  return run_forward(check(input, batch_sizes, hx, cx, weights, mode, has_biases, train));
}

std::vector<Tensor> layer_backward_cpu(const OptionalTensor& grad_output,
                                       const OptionalTensor& grad_h_n,
                                       const OptionalTensor& grad_c_n, const Tensor& input,
                                       const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                                       const OptionalTensor& cx, at::TensorList weights,
                                       const Tensor& output, const Tensor& reserve,
                                       c10::string_view mode, bool has_biases,
                                       const c10::List<bool>& needs) {
  const BackwardCall call =
      check_backward(grad_output, grad_h_n, grad_c_n, input, batch_sizes, hx, cx, weights, output,
                     reserve, mode, has_biases, needs, cpu::reserve_width);
  const Problem& shape = call.problem;
  const int64_t D = call.D, B = shape.B, H = shape.H, P = shape.P;
  const int64_t rows = call.rows(), width = call.reserve.size(2);
  if (B == 0) return call.results();
  const cpu::Team workers = team();
  const Work work(call, workers, cpu::plan_backward);
  const Tensor workspace = workspace_of(work.bytes(), call.input.options());
  in_huge_pages(call.dx);
  // Summed apart whether or not the directions run at once: bits do not depend on threads.
  const bool apart = D == 2 && cpu::pairs_directions(shape) && call.dx.defined();
  const Tensor dx_of_reverse = apart ? in_huge_pages(at::empty_like(call.dx)) : Tensor();
  cpu::BackwardParams params[2]{};
  for (int64_t d = 0; d < D; ++d) {
    const Tensor* dw = call.dweight(d);
    cpu::BackwardParams& a = params[d];
    a.problem = call.direction(d);
    a.x = read(call.input);
    a.h0 = read(call.hx, d * B * P);
    a.c0 = read(call.cx, d * B * H);
    a.w_ih = read(call.weight(d, 0));
    a.w_hh = read(call.weight(d, 1));
    a.w_hr = shape.projected ? read(call.weight(d, call.per_direction - 1)) : nullptr;
    a.y = read(call.y, d * P);
    a.ldy = D * P;
    a.reserve = read(call.reserve, d * rows * width);
    a.dy = read(call.dy, d * P);
    a.lddy = D * P;
    a.dh_n = read(call.dh_n, d * B * P);
    a.dc_n = read(call.dc_n, d * B * H);
    a.dx = write(apart && d > 0 ? dx_of_reverse : call.dx);
    a.accumulate_dx = d > 0 && !apart;
    a.dh0 = write(call.dhx, d * B * P);
    a.dc0 = write(call.dcx, d * B * H);
    a.dw_ih = write(dw[0]);
    a.dw_hh = write(dw[1]);
    a.db_ih = has_biases ? write(dw[2]) : nullptr;
    a.db_hh = has_biases ? write(dw[3]) : nullptr;
    a.dw_hr = shape.projected ? write(dw[call.per_direction - 1]) : nullptr;
    a.workspace = write(workspace, work.begin(d));
  }
  work.run([&](const cpu::Team& some, int64_t d) { cpu::backward(params[d], work.plan, some); });
  if (apart) call.dx.add_(dx_of_reverse);
  return call.results();
}

// Memory of one dtype, as the kernels take it.
bool is_ready(const Tensor& tensor, at::ScalarType type, at::IntArrayRef shape) {
  return tensor.defined() && tensor.is_cpu() && is_plain(tensor) && tensor.scalar_type() == type &&
         tensor.sizes().equals(shape) && tensor.is_contiguous() &&
         (tensor.storage_offset() + tensor.numel()) * tensor.element_size() <=
             int64_t(tensor.storage().nbytes()) &&
         !(tensor.requires_grad() && at::GradMode::is_enabled());
}

}  // namespace

bool keeps_bfloat16(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                    at::TensorList weights) {
  const auto fits = [](const Tensor& tensor) {
    return tensor.is_cpu() && is_plain(tensor) &&
           !(tensor.requires_grad() && at::GradMode::is_enabled());
  };
  for (const Tensor& weight : weights) {
    if (weight.scalar_type() != at::kBFloat16 || !fits(weight)) return false;
  }
  return fits(input) && (!hx || fits(*hx)) && (!cx || fits(*cx));
}

LayerResult layer_of_bfloat16(const Tensor& input, const OptionalTensor& batch_sizes,
                              const OptionalTensor& hx, const OptionalTensor& cx,
                              at::TensorList weights, c10::string_view mode, bool has_biases) {
  Call call = check(input, batch_sizes, hx, cx, weights, mode, has_biases, /*train=*/false,
                    Weights::kBFloat16);
  for (Tensor* tensor : {&call.input, &call.hx, &call.cx}) *tensor = widened(*tensor);
  const LayerResult wide = run_forward(call);
  if (input.scalar_type() == at::kFloat) return wide;
  const auto& [output, h_n, c_n, reserve] = wide;
  return {narrowed(output), narrowed(h_n), narrowed(c_n), reserve};
}

std::optional<std::tuple<Tensor, Tensor>> step_on_cpu(const Tensor& input, const Tensor& hx,
                                                      const OptionalTensor& cx, const Tensor& w_ih,
                                                      const Tensor& w_hh,
                                                      const OptionalTensor& b_ih,
                                                      const OptionalTensor& b_hh,
                                                      c10::string_view mode) {
  // Before any size is read: a traced one would become a constant.
  if (!input.defined() || !hx.defined() || !is_plain(input) || !is_plain(hx)) return std::nullopt;
  if (input.dim() != 2 || hx.dim() != 2) return std::nullopt;
  const at::ScalarType type = input.scalar_type();
  const bool low = type == at::kBFloat16;
  if (type != at::kFloat && type != at::kDouble && !low) return std::nullopt;
  Problem p{};
  p.cell = cell_of(mode);
  p.dtypes = all_of(dtype_of(low ? at::kFloat : type));
  if (low) p.dtypes.stored = DType::kBFloat16;
  p.T = 1;
  p.B = input.size(0);
  p.I = input.size(1);
  p.H = p.P = hx.size(1);
  const bool lstm = p.cell == Cell::kLstm;
  const int64_t GH = gates_of(p.cell) * p.H;
  const auto ready = [&](const Tensor& tensor, at::IntArrayRef shape) {
    return is_ready(tensor, type, shape);
  };
  const bool fits =
      p.B > 0 && p.I > 0 && p.H > 0 && cx.has_value() == lstm && ready(input, {p.B, p.I}) &&
      ready(hx, {p.B, p.H}) && (!lstm || ready(*cx, {p.B, p.H})) && ready(w_ih, {GH, p.I}) &&
      ready(w_hh, {GH, p.H}) && (!b_ih || ready(*b_ih, {GH})) && (!b_hh || ready(*b_hh, {GH}));
  if (!fits) return std::nullopt;

  const cpu::Team workers = team();
  const cpu::Plan plan = cpu::plan_forward(p, workers.threads);
  const Tensor x = widened(input), h0 = widened(hx), c0 = lstm ? widened(*cx) : Tensor();
  Tensor h = at::empty_like(h0);
  Tensor c = lstm ? at::empty_like(h0) : at::empty({0}, input.options());
  const int64_t y_bytes = p.B * p.H * size_of(p.dtypes.computed);
  const Tensor workspace =
      at::empty({plan.workspace_bytes + y_bytes}, input.options().dtype(at::kByte));
  cpu::ForwardParams a{};
  a.problem = p;
  a.x = read(x);
  a.h0 = read(h0);
  a.c0 = read(c0);
  a.w_ih = read(w_ih);
  a.w_hh = read(w_hh);
  a.b_ih = b_ih ? read(*b_ih) : nullptr;
  a.b_hh = b_hh ? read(*b_hh) : nullptr;
  a.y = write(workspace, plan.workspace_bytes);
  a.ldy = p.H;
  a.h_n = write(h);
  a.c_n = lstm ? write(c) : nullptr;
  a.workspace = write(workspace);
  cpu::forward(a, plan, workers);
  if (low) return std::tuple(narrowed(h), narrowed(c));
  return std::tuple(h, c);
}

TORCH_LIBRARY_IMPL(fusedrnn, CPU, m) {
  m.impl("layer", layer_cpu);
  m.impl("layer_backward", layer_backward_cpu);
}

}  // namespace fusedrnn::ops

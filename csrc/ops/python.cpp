// What Python asks that is not a tensor operator, but for the CUDA half (python_cuda.cpp).
#include "ops/python.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/DispatchKeySet.h>

#include <algorithm>

#include "model/choice.h"
#include "ops/check.h"
#include "ops/choice.h"
#include "ops/cpu/bfloat16.h"
#include "ops/cudnn.h"

namespace py = pybind11;

namespace fusedrnn::ops {
namespace {

DType dtype_named(const std::string& name) {
  if (name == "float64") return DType::kFloat64;
  TORCH_CHECK_VALUE(name == "float32" || name == "bfloat16" || name == "float16",
                    "fusedrnn: dtype must be float32, float64, bfloat16 or float16, got ", name);
  return DType::kFloat32;
}

}  // namespace

Problem problem_of(const py::dict& stated) {
  const auto number = [&](const char* name) {
    return stated.contains(name) ? stated[name].cast<int64_t>() : 0;
  };
  Problem p{};
  p.cell = cell_of(stated["mode"].cast<std::string>());
  p.dtypes = all_of(dtype_named(stated["dtype"].cast<std::string>()));
  p.T = number("T");
  p.B = number("B");
  p.I = number("I");
  p.H = number("H");
  p.projected = number("P") > 0;
  p.P = p.projected ? number("P") : p.H;
  p.training = number("training") != 0;
  p.packed = number("packed") != 0;
  return p;
}

namespace {

// Of packed rows, as Problem has them; empty where every step has B rows.
std::vector<int64_t> offsets_of(const std::optional<std::vector<int64_t>>& batch_sizes, int64_t T,
                                int64_t B) {
  if (!batch_sizes) return {};
  TORCH_CHECK_VALUE(
      !batch_sizes->empty() && int64_t(batch_sizes->size()) == T && batch_sizes->front() == B,
      "fusedrnn: batch_sizes must have T = ", T, " entries, the first of them B = ", B, ", got ",
      at::IntArrayRef(*batch_sizes));
  const std::string fault = fault_of_packed(*batch_sizes, /*N=*/-1);
  TORCH_CHECK_VALUE(fault.empty(), "fusedrnn: ", fault);
  return packed_offsets(*batch_sizes);
}

py::dict explain(const py::dict& problem, const std::optional<std::vector<int64_t>>& batch_sizes,
                 int threads, bool bfloat16_weights) {
  Problem p = problem_of(problem);
  const int64_t B = p.B, D = problem["D"].cast<int64_t>();
  const bool training = p.training;
  const auto dtype = problem["dtype"].cast<std::string>();
  const std::vector<int64_t> offsets = offsets_of(batch_sizes, p.T, B);
  p.packed = batch_sizes.has_value();
  if (p.packed) p.offsets = offsets.data();
  if (bfloat16_weights && !training) p.dtypes.stored = DType::kBFloat16;
  if (problem.contains("frozen")) {
    const auto stored = problem["frozen"].cast<std::string>();
    p.frozen = true;
    p.dtypes.stored = p.dtypes.multiplied = stored == "int8"       ? DType::kInt8
                                            : stored == "bfloat16" ? DType::kBFloat16
                                                                   : dtype_named(stored);
  } else if (dtype == "bfloat16" && may_multiply_bfloat16())
    p.dtypes.multiplied = DType::kBFloat16;
  Reasons reasons;
  const int each = cpu::threads_of_direction(p, int(D), threads, &reasons);
  const cpu::Plan plan = cpu::plan_forward(p, each, &reasons);
  const int64_t backward = training ? cpu::plan_backward(p, each).workspace_bytes : 0;
  const int at_once = each < threads ? 2 : 1;
  if (!p.frozen && (dtype == "bfloat16" || dtype == "float16")) {
    const std::string what = plan.narrow ? ", sums and cells in float32" : ", computed in float32";
    reasons.because("stored in " + dtype + what);
  }

  py::dict d;
  d["device"] = "cpu";
  d["kernel"] = std::string("fused_") + (training ? "training" : "inference");
  d["isa"] = plan.isa;
  d["threads"] = at_once * plan.threads;
  const std::string split = cpu::name_of(plan.split);
  d["split"] = at_once == 1                      ? split
               : plan.split == cpu::Split::kNone ? "directions"
                                                 : "directions, " + split;
  d["lanes"] = plan.lanes;
  d["panel"] = std::to_string(plan.unit_vectors * plan.lanes) + " units x " +
               std::to_string(plan.vectors / plan.unit_vectors) + " gates, " +
               std::to_string(plan.panels) + " panels";
  d["rows"] = plan.tile_rows;
  d["stretch"] = plan.stretch;
  d["weights"] = cpu::name_of(plan.weights);
  d["workspace_bytes"] = at_once * std::max(plan.workspace_bytes, backward);
  d["reserve_bytes"] = D * plan.reserve_size * size_of(p.dtypes.computed);
  d["reason"] = reasons.chosen;
  d["rejected"] = reasons.rejected;
  return d;
}

int64_t reserve_width(const std::string& mode, const std::string& dtype, int64_t H, int64_t P,
                      const std::string& device, int64_t every) {
  using namespace py::literals;
  Problem p = problem_of(
      py::dict("mode"_a = mode, "dtype"_a = dtype, "H"_a = H, "P"_a = P, "training"_a = true));
  p.every = every;
  return device == "cuda" ? cuda_reserve_width(p) : cpu::reserve_width(p);
}

bool symbolic(const Tensor& t) { return t.unsafeGetTensorImpl()->has_symbolic_sizes_strides(); }
bool symbolic(const OptionalTensor& t) { return t && symbolic(*t); }

// Whether the tensor is memory, not a tracer's.
bool has_data(const Tensor& tensor) {
  constexpr auto kPlain =
      c10::autograd_dispatch_keyset | c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::ADInplaceOrView});
  return (tensor.key_set() - kPlain).highestFunctionalityKey() == c10::DispatchKey::Undefined;
}

// Refuses what the layer operators refuse, for their fake kernels and for the definition in their
// place: these would fail somewhere inside, or not at all. Where sizes are symbols it lets all
// pass.
using GivenOperands =
    std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, std::vector<Tensor>,
               std::string, bool, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;
void check_fit(const GivenOperands& operands, const py::object& backward) {
  const auto& [input, batch_sizes, hx, cx, weights, mode, has_biases, lengths, resets, reset_h,
               reset_c] = operands;
  if (symbolic(input) || symbolic(batch_sizes) || symbolic(hx) || symbolic(cx)) return;
  if (symbolic(lengths) || symbolic(resets) || symbolic(reset_h) || symbolic(reset_c)) return;
  for (const Tensor& weight : weights) {
    if (symbolic(weight)) return;
  }
  const Cell cell = cell_of(mode);
  const Operands o{input,
                   batch_sizes,
                   hx,
                   cx,
                   weights_of_layer(cell, has_biases, weights),
                   cell,
                   /*train=*/true,
                   Course{lengths, resets, reset_h, reset_c}};
  const bool reads = !o.packed() || has_data(*batch_sizes);
  const Call call = fit(o, reads);
  if (backward.is_none() || !reads) return;
  const auto [dy, dh_n, dc_n, output, needs, dstates] =
      backward.cast<std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, Tensor,
                               std::vector<bool>, OptionalTensor>>();
  if (symbolic(dy) || symbolic(dh_n) || symbolic(dc_n) || symbolic(output) || symbolic(dstates))
    return;
  c10::List<bool> list;
  for (const bool need : needs) list.push_back(need);
  fit_backward(call, o, {dy, dh_n, dc_n, output, /*reserve=*/output, list, dstates});
}

// The table of cells (csrc/model/cell.h), a dict a cell.
std::vector<py::dict> cells() {
  std::vector<py::dict> all;
  for (const CellSpec& each : kCells) {
    py::dict d;
    d["name"] = each.name;
    d["gates"] = each.gates;
    d["slots"] = each.slots;
    d["has_c"] = each.has_c;
    d["has_torch"] = each.torch != TorchLayer::kNone;
    d["family"] = spec(each.family).name;
    all.push_back(d);
  }
  return all;
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const char* const* isa = cpu::isa_names(); *isa; ++isa) names.emplace_back(*isa);
  return names;
}

double fma_peak(int threads, double seconds) {
  TORCH_CHECK_VALUE(threads > 0 && seconds > 0 && seconds <= 10,
                    "fusedrnn: fma_peak takes threads > 0 and 0 < seconds <= 10, got ", threads,
                    " and ", seconds);
  cpu::Team workers = team();
  workers.threads = std::min(threads, workers.threads);
  py::gil_scoped_release release;
  return cpu::fma_peak(workers, seconds);
}

at::Tensor eval_activation(bool tanh_not_sigmoid, const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.device().is_cpu() && x.is_contiguous(),
              "fusedrnn: eval_activation takes a contiguous float32 tensor on the CPU");
  at::Tensor y = at::empty_like(x);
  cpu::eval_activation(tanh_not_sigmoid, x.const_data_ptr<float>(), y.data_ptr<float>(), x.numel());
  return y;
}

// The engine calls it from a thread of its own choice; None stands for an undefined tensor.
void set_second_backward(py::function function) {
  auto* const kept = new py::function(std::move(function));  // the library is never unloaded
  second_backward() =
      [kept](const std::vector<at::Tensor>& slopes, const std::vector<at::Tensor>& tensors,
             const std::vector<std::optional<at::Tensor>>& rows, const std::string& mode,
             bool has_biases, const std::vector<bool>& needs, const std::vector<bool>& wanted) {
        const py::gil_scoped_acquire gil;
        auto list = [](const std::vector<at::Tensor>& items) {
          py::list result;
          for (const at::Tensor& t : items) {
            result.append(t.defined() ? py::cast(t) : py::object(py::none()));
          }
          return result;
        };
        const py::object found =
            (*kept)(list(slopes), list(tensors), rows, mode, has_biases, needs, wanted);
        return found.cast<std::vector<at::Tensor>>();
      };
}

void set_cuda_missing(std::string reason, py::function warn) {
  auto call = [kept = new py::function(std::move(warn))] {  // the library is never unloaded
    const py::gil_scoped_acquire gil;
    (*kept)();
  };
  cuda_missing() = {std::move(reason), call};
}

}  // namespace
}  // namespace fusedrnn::ops

PYBIND11_MODULE(_C, m) {
  namespace ops = fusedrnn::ops;
  m.def("set_cuda_missing", &ops::set_cuda_missing, py::arg("reason"), py::arg("warn"));
  m.def("cells", &ops::cells);
  m.def("cpu_isa", [] { return std::string(fusedrnn::cpu::isa_name()); });
  m.def("cpu_isas", &ops::cpu_isas);
  m.def("fma_peak", &ops::fma_peak, py::arg("threads"), py::arg("seconds") = 0.05);
  m.def("eval_activation", &ops::eval_activation, py::arg("tanh_not_sigmoid"), py::arg("x"));
  m.def("explain", &ops::explain, py::arg("problem"), py::arg("batch_sizes"), py::arg("threads"),
        py::arg("bfloat16_weights") = false);
  m.def("check_fit", &ops::check_fit, py::arg("operands"), py::arg("backward") = py::none());
  m.def("reserve_width", &ops::reserve_width, py::arg("mode"), py::arg("dtype"), py::arg("H"),
        py::arg("P"), py::arg("device"), py::arg("every") = 0);
  m.def(
      "has_tangent", [](const at::Tensor& tensor) { return tensor._fw_grad(0).defined(); },
      py::arg("tensor"));
  m.def("set_second_backward", &ops::set_second_backward, py::arg("function"));
  ops::bind_cuda(m);
  ops::bind_frozen(m);
}

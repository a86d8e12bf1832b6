// What Python asks that is not a tensor operator: the CPU variant, the plans, the CUDA half.
#include <ATen/ops/empty_like.h>
#include <c10/core/DispatchKeySet.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>

#include "ops/by_torch.h"
#include "ops/check.h"
#include "ops/choice.h"

namespace py = pybind11;

namespace fusedrnn::ops {
namespace {

DType dtype_named(const std::string& name) {
  if (name == "float64") return DType::kFloat64;
  TORCH_CHECK_VALUE(name == "float32" || name == "bfloat16" || name == "float16",
                    "fusedrnn: dtype must be float32, float64, bfloat16 or float16, got ", name);
  return DType::kFloat32;
}

// Of packed rows, as Problem has them; empty where every step has B rows.
std::vector<int64_t> offsets_of(const std::optional<std::vector<int64_t>>& batch_sizes, int64_t T,
                                int64_t B) {
  if (!batch_sizes) return {};
  TORCH_CHECK_VALUE(
      !batch_sizes->empty() && int64_t(batch_sizes->size()) == T && batch_sizes->front() == B,
      "fusedrnn: batch_sizes must have T = ", T, " entries, the first of them B = ", B, ", got ",
      at::IntArrayRef(*batch_sizes));
  std::vector<int64_t> offsets{0};
  int64_t last = B;
  for (const int64_t rows : *batch_sizes) {
    TORCH_CHECK_VALUE(0 < rows && rows <= last,
                      "fusedrnn: batch_sizes must be positive and never rise, got ",
                      at::IntArrayRef(*batch_sizes));
    offsets.push_back(offsets.back() + rows);
    last = rows;
  }
  return offsets;
}

Problem problem_of(const std::string& mode, const std::string& dtype, int64_t T, int64_t B,
                   int64_t I, int64_t H, int64_t P, bool training, bool packed) {
  Problem p{};
  p.cell = cell_of(mode);
  p.dtypes = all_of(dtype_named(dtype));
  p.T = T;
  p.B = B;
  p.I = I;
  p.H = H;
  p.projected = P > 0;
  p.P = p.projected ? P : H;
  p.training = training;
  p.packed = packed;
  return p;
}

py::dict explain(const std::string& mode, const std::string& dtype, int64_t T, int64_t B, int64_t I,
                 int64_t H, int64_t P, int64_t D,
                 const std::optional<std::vector<int64_t>>& batch_sizes, bool training, int threads,
                 bool bfloat16_weights) {
  const std::vector<int64_t> offsets = offsets_of(batch_sizes, T, B);
  Problem p = problem_of(mode, dtype, T, B, I, H, P, training, batch_sizes.has_value());
  if (p.packed) p.offsets = offsets.data();
  if (bfloat16_weights && !training) p.dtypes.stored = DType::kBFloat16;
  const int each = cpu::threads_of_direction(p, int(D), threads);
  const cpu::Plan plan = cpu::plan_forward(p, each);
  const int64_t backward = training ? cpu::plan_backward(p, each).workspace_bytes : 0;
  const int at_once = each < threads ? 2 : 1;

  py::dict d;
  d["device"] = "cpu";
  d["kernel"] = std::string("fused_") + (training ? "training" : "inference");
  d["isa"] = plan.isa;
  d["threads"] = at_once * plan.threads;
  const std::string split = plan.split == cpu::Split::kBatch    ? "batch"
                            : plan.split == cpu::Split::kHidden ? "hidden"
                                                                : "none";
  d["split"] = at_once == 1                      ? split
               : plan.split == cpu::Split::kNone ? "directions"
                                                 : "directions, " + split;
  d["lanes"] = plan.lanes;
  d["panel"] = std::to_string(plan.unit_vectors * plan.lanes) + " units x " +
               std::to_string(plan.vectors / plan.unit_vectors) + " gates, " +
               std::to_string(plan.panels) + " panels";
  d["rows"] = plan.tile_rows;
  d["stretch"] = plan.stretch;
  d["weights"] = plan.direct ? "read in place" : plan.pairs ? "packed, W_hh in bfloat16" : "packed";
  d["workspace_bytes"] = at_once * std::max(plan.workspace_bytes, backward);
  d["reserve_bytes"] = D * plan.reserve_size * size_of(p.dtypes.computed);
  py::list rejected;
  const std::string ruled_out = std::string("FUSEDRNN_CPU_ISA=") + plan.isa + " rules it out";
  bool wider = false;  // the names come slowest first
  for (const char* const* isa = cpu::isa_names(); *isa; ++isa) {
    if (std::string(*isa) == plan.isa) {
      wider = true;
    } else {
      rejected.append(py::make_tuple(std::string("instruction set ") + *isa,
                                     wider ? ruled_out : "narrower vectors"));
    }
  }
  std::string reason;
  if (plan.split == cpu::Split::kBatch) {
    reason = "each thread owns rows of the batch for the whole sequence and waits for nobody";
    rejected.append(
        py::make_tuple("split by hidden units", "needs a barrier every step; W_hh stays in L2"));
  } else if (plan.split == cpu::Split::kHidden) {
    const bool few = B < plan.threads;
    reason = std::string(few ? "fewer rows than threads" : "W_hh overflows L2") +
             ": each thread owns panels of hidden units, one barrier a step";
    rejected.append(
        py::make_tuple("split by batch rows",
                       few ? std::to_string(B) + " rows for " + std::to_string(threads) + " threads"
                           : "every thread would read all of W_hh every step"));
  } else {
    reason = threads > 1 ? "too little work for a second thread to pay" : "one thread is available";
    if (threads > 1) {
      rejected.append(py::make_tuple(std::to_string(threads) + " threads",
                                     "under 0.4 MFLOP a thread, starting one costs more"));
    }
  }
  if (batch_sizes && plan.split == cpu::Split::kBatch)
    reason += "; packed rows are shared out by total length";
  if (dtype == "bfloat16" || dtype == "float16")
    reason += "; stored in " + dtype + ", computed in float32";
  d["rejected"] = rejected;
  d["reason"] = reason;
  return d;
}

// A cuda::Device to and from Python: any GPU can be planned for, present or not.
cuda::Device device_of(const py::dict& d) {
  cuda::Device device{};
  std::vector<int> clusters;
  try {
    device.sm = d["sm"].cast<int>();
    device.multiprocessors = d["multiprocessors"].cast<int>();
    device.shared_bytes = d["shared_bytes"].cast<int64_t>();
    device.clock_ghz = d["clock_ghz"].cast<double>();
    clusters = d["clusters"].cast<std::vector<int>>();
  } catch (const py::cast_error&) {
    TORCH_CHECK_TYPE(false,
                     "fusedrnn: a GPU's limits must be numbers, and clusters a list of them, "
                     "got ",
                     py::repr(d).cast<std::string>());
  }
  TORCH_CHECK_VALUE(device.sm > 0 && device.multiprocessors > 0 && device.shared_bytes > 0 &&
                        device.clock_ghz >= 0,
                    "fusedrnn: a GPU's sm, multiprocessors and shared_bytes must be greater than ",
                    "zero, its clock_ghz too or, if unknown, zero; got ",
                    py::repr(d).cast<std::string>());
  TORCH_CHECK_VALUE(clusters.size() == std::size(device.clusters),
                    "fusedrnn: clusters must have a count for 1, 2, 4, 8 and 16 blocks, got ",
                    clusters.size(), " counts");
  for (const int count : clusters) {
    TORCH_CHECK_VALUE(count >= 0, "fusedrnn: clusters must be counts, got ", count);
  }
  std::copy(clusters.begin(), clusters.end(), device.clusters);
  return device;
}

py::dict cuda_device_of(int index) {
#ifdef FUSEDRNN_WITH_CUDA
  const cuda::Device& device = cuda_device(index);
  py::dict d;
  d["sm"] = device.sm;
  d["multiprocessors"] = device.multiprocessors;
  d["shared_bytes"] = device.shared_bytes;
  d["clock_ghz"] = device.clock_ghz;
  d["clusters"] = std::vector<int>(std::begin(device.clusters), std::end(device.clusters));
  return d;
#else
  TORCH_CHECK(false, cuda_missing().reason, "; so it cannot ask CUDA device ", index,
              " what it is");
#endif
}

// What is known of device `index`; nothing of a pretended one, -1.
cuda::Experience experienced(int index) {
  return index < 0 ? cuda::Experience{} : experience_of(index);
}

py::dict cuda_plan_of(bool backward, const std::string& mode, const std::string& dtype, int64_t T,
                      int64_t B, int64_t I, int64_t H, int64_t P, int64_t D, bool packed,
                      bool training, const py::dict& device, unsigned allowed, int64_t L, bool tf32,
                      int index) {
  const Problem p = problem_of(mode, dtype, T, B, I, H, P, training, packed);
  Rejections rejected;
  const cuda::Pass pass = backward ? cuda::Pass::kBackward : cuda::Pass::kForward;
  const cuda::Plan plan = cuda_plan(pass, p, {int(D), L, tf32}, device_of(device),
                                    experienced(index), allowed, &rejected);
  py::dict d;
  d["kernel"] = name_of(plan.kernel);
  d["tile"] = plan.tile;
  d["hidden"] = plan.hidden;
  d["cluster"] = plan.cluster;
  d["rows"] = plan.rows;
  d["threads"] = plan.threads;
  d["registers"] = plan.registers;
  d["shared_bytes"] = plan.shared_bytes;
  d["blocks"] = plan.blocks;
  d["chunk"] = plan.chunk;
  d["step_us"] = plan.step_us;
  d["recurrence_us"] = plan.recurrence_us;
  d["measured"] = plan.measured;
  d["rejected"] = rejected;
  return d;
}

bool hands_to_torch(const std::string& mode, const std::string& dtype, int64_t T, int64_t B,
                    int64_t I, int64_t H, int64_t P, int64_t D, bool packed, bool training,
                    const py::dict& device, unsigned allowed, int64_t L, bool tf32, int index) {
  const Problem p = problem_of(mode, dtype, T, B, I, H, P, training, packed);
  return torch_is_cheaper(p, {int(D), L, tf32}, device_of(device), experienced(index), allowed,
                          dtype == "float16" || dtype == "bfloat16");
}

void check_index(int index) {
  TORCH_CHECK_VALUE(index >= 0, "fusedrnn: a CUDA device's number is not negative, got ", index);
}

cuda::Measured measured_of(const py::dict& d) {
  cuda::Measured m{};
  try {
    m.cell = cell_of(d["mode"].cast<std::string>());
    if (m.cell == Cell::kRnnRelu) m.cell = Cell::kRnnTanh;
    m.pass = d["backward"].cast<bool>() ? cuda::Pass::kBackward : cuda::Pass::kForward;
    m.training = d["training"].cast<bool>();
    m.tf32 = d["tf32"].cast<bool>();
    m.H = d["H"].cast<int>();
    m.B = d["B"].cast<int>();
    m.D = d["D"].cast<int>();
    m.L = d["L"].cast<int>();
    const auto name = d["kernel"].cast<std::string>();
    const auto kernel = kernel_named(name);
    TORCH_CHECK_VALUE(kernel, "fusedrnn: no CUDA kernel is named ", name);
    m.kernel = *kernel;
    m.tile = d["tile"].cast<int>();
    m.step_us = d["step_us"].cast<double>();
  } catch (const py::cast_error&) {
    TORCH_CHECK_TYPE(false, "fusedrnn: not a measurement: ", py::repr(d).cast<std::string>());
  }
  const bool sizes = cuda::class_of_H(m.H) == m.H && cuda::class_of_B(m.B) == m.B &&
                     cuda::class_of_L(m.L) == m.L && (m.D == 1 || m.D == 2);
  const bool persistent = m.kernel == cuda::Kernel::kBlock || m.kernel == cuda::Kernel::kCluster;
  const bool tile = persistent ? 0 <= m.tile && m.tile < cuda::tile_count() : m.tile == -1;
  TORCH_CHECK_VALUE(
      sizes && tile && std::isfinite(m.step_us) && m.step_us > 0,
      "fusedrnn: not a measurement of a class of problems: ", py::repr(d).cast<std::string>());
  return m;
}

// Replaces what was measured on device `index`. Each entry is a dict: mode, backward, training,
// tf32, H and B (largest of their class, see cuda_class), D, L (2: more than one), kernel, tile
// (-1 but for persistent kernels), step_us.
void set_measured_of(int index, const std::vector<py::dict>& entries) {
  check_index(index);
  std::vector<cuda::Measured> measured;
  for (const py::dict& entry : entries) measured.push_back(measured_of(entry));
  set_measured(index, std::move(measured));
}

void exclude_tile(int index, bool backward, int tile) {
  check_index(index);
  TORCH_CHECK_VALUE(0 <= tile && tile < cuda::tile_count(),
                    "fusedrnn: tile must be a row of csrc/cuda/tiles.h, got ", tile);
  exclude(index, backward ? cuda::Pass::kBackward : cuda::Pass::kForward, tile);
}

// {"excluded": (tiles going forward, tiles going back), "measured": dicts as set_measured takes}.
py::dict experience_dict(int index) {
  check_index(index);
  const cuda::Experience known = experience_of(index);
  std::vector<int> excluded[2];
  for (int tile = 0; tile < 64; ++tile) {
    for (const int pass : {0, 1}) {
      if (known.excluded[pass] >> tile & 1) excluded[pass].push_back(tile);
    }
  }
  py::list measured;
  for (int64_t i = 0; i < known.count; ++i) {
    const cuda::Measured& m = known.measured[i];
    py::dict d;
    d["mode"] = name_of(m.cell);
    d["backward"] = m.pass == cuda::Pass::kBackward;
    d["training"] = m.training;
    d["tf32"] = m.tf32;
    d["H"] = m.H;
    d["B"] = m.B;
    d["D"] = m.D;
    d["L"] = m.L;
    d["kernel"] = name_of(m.kernel);
    d["tile"] = m.tile;
    d["step_us"] = m.step_us;
    measured.append(d);
  }
  py::dict d;
  d["excluded"] = py::make_tuple(excluded[0], excluded[1]);
  d["measured"] = measured;
  return d;
}

int64_t reserve_width(const std::string& mode, const std::string& dtype, int64_t H, int64_t P,
                      const std::string& device) {
  const Problem p = problem_of(mode, dtype, 0, 0, 0, H, P, true, false);
  return device == "cuda" ? cuda_reserve_width(p) : cpu::reserve_width(p);
}

// Refuses what the layer operators do: for their fake kernels and for the definition in their
// place, which would fail somewhere inside, or not at all. Where sizes are symbols it holds its
// peace.
void check_fit(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
               const OptionalTensor& cx, const std::vector<Tensor>& weights,
               const std::string& mode, bool has_biases, const py::object& backward) {
  auto symbolic = [](const Tensor& t) {
    return t.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  };
  auto any = [&](const OptionalTensor& t) { return t && symbolic(*t); };
  if (symbolic(input) || any(batch_sizes) || any(hx) || any(cx) ||
      std::any_of(weights.begin(), weights.end(), symbolic)) {
    return;
  }
  constexpr auto kPlain =
      c10::autograd_dispatch_keyset | c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::ADInplaceOrView});
  const bool has_data =
      batch_sizes &&
      (batch_sizes->key_set() - kPlain).highestFunctionalityKey() == c10::DispatchKey::Undefined;
  const Call call = fit(input, batch_sizes, hx, cx, weights, mode, has_biases, has_data);
  if (backward.is_none() || (batch_sizes && !has_data)) return;
  const auto [dy, dh_n, dc_n, output, needs] = backward.cast<
      std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, Tensor, std::vector<bool>>>();
  if (any(dy) || any(dh_n) || any(dc_n) || symbolic(output)) return;
  c10::List<bool> list;
  for (const bool need : needs) list.push_back(need);
  fit_backward(call, dy, dh_n, dc_n, input, hx, cx, weights, output, list);
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
             const std::optional<at::Tensor>& batch_sizes, const std::string& mode, bool has_biases,
             const std::vector<bool>& needs, const std::vector<bool>& wanted) {
        const py::gil_scoped_acquire gil;
        auto list = [](const std::vector<at::Tensor>& items) {
          py::list result;
          for (const at::Tensor& t : items) {
            result.append(t.defined() ? py::cast(t) : py::object(py::none()));
          }
          return result;
        };
        const py::object found =
            (*kept)(list(slopes), list(tensors), batch_sizes, mode, has_biases, needs, wanted);
        return found.cast<std::vector<at::Tensor>>();
      };
}

void set_experience_loader(py::function load) {
  experience_loader() = [kept = new py::function(std::move(load))](int device) {
    const py::gil_scoped_acquire gil;
    (*kept)(device);
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
  m.def("cpu_isa", [] { return std::string(fusedrnn::cpu::isa_name()); });
  m.def("cpu_isas", &ops::cpu_isas);
  m.def("fma_peak", &ops::fma_peak, py::arg("threads"), py::arg("seconds") = 0.05);
  m.def("eval_activation", &ops::eval_activation, py::arg("tanh_not_sigmoid"), py::arg("x"));
  m.def("explain", &ops::explain, py::arg("mode"), py::arg("dtype"), py::arg("T"), py::arg("B"),
        py::arg("I"), py::arg("H"), py::arg("P"), py::arg("D"), py::arg("batch_sizes"),
        py::arg("training"), py::arg("threads"), py::arg("bfloat16_weights") = false);
  m.def("check_fit", &ops::check_fit, py::arg("input"), py::arg("batch_sizes"), py::arg("hx"),
        py::arg("cx"), py::arg("weights"), py::arg("mode"), py::arg("has_biases"),
        py::arg("backward") = py::none());
  m.def("reserve_width", &ops::reserve_width, py::arg("mode"), py::arg("dtype"), py::arg("H"),
        py::arg("P"), py::arg("device"));
  m.def(
      "has_tangent", [](const at::Tensor& tensor) { return tensor._fw_grad(0).defined(); },
      py::arg("tensor"));
  m.def("set_second_backward", &ops::set_second_backward, py::arg("function"));
  m.def("cuda_allowed", &ops::cuda_allowed);
  m.def("cuda_device", &ops::cuda_device_of, py::arg("index"));
  m.def("cuda_plan", &ops::cuda_plan_of, py::arg("backward"), py::arg("mode"), py::arg("dtype"),
        py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"), py::arg("D"),
        py::arg("packed"), py::arg("training"), py::arg("device"), py::arg("allowed"),
        py::arg("L") = 1, py::arg("tf32") = true, py::arg("index") = -1);
  m.def("hands_to_torch", &ops::hands_to_torch, py::arg("mode"), py::arg("dtype"), py::arg("T"),
        py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"), py::arg("D"), py::arg("packed"),
        py::arg("training"), py::arg("device"), py::arg("allowed"), py::arg("L") = 1,
        py::arg("tf32") = true, py::arg("index") = -1);
  m.def(
      "cuda_class",
      [](int64_t H, int64_t B) {
        return std::pair(fusedrnn::cuda::class_of_H(H), fusedrnn::cuda::class_of_B(B));
      },
      py::arg("H"), py::arg("B"));
  m.def("rnn_takes_tf32", &ops::rnn_takes_tf32);
  m.def("set_measured", &ops::set_measured_of, py::arg("index"), py::arg("measured"));
  m.def("exclude_tile", &ops::exclude_tile, py::arg("index"), py::arg("backward"), py::arg("tile"));
  m.def("set_experience_loader", &ops::set_experience_loader, py::arg("load"));
  m.def("experience", &ops::experience_dict, py::arg("index"));
}

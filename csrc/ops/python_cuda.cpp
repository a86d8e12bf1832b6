// What Python asks of the CUDA half, and a device's limits, plans and measurements as its dicts.
#include <algorithm>
#include <cmath>

#include "ops/choice.h"
#include "ops/cudnn.h"
#include "ops/python.h"

namespace py = pybind11;

namespace fusedrnn::ops {
namespace {

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
    m.cell = spec(cell_of(d["mode"].cast<std::string>())).family;
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

void set_experience_loader(py::function load) {
  experience_loader() = [kept = new py::function(std::move(load))](int device) {
    const py::gil_scoped_acquire gil;
    (*kept)(device);
  };
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_allowed", &cuda_allowed);
  m.def("cuda_device", &cuda_device_of, py::arg("index"));
  m.def("cuda_plan", &cuda_plan_of, py::arg("backward"), py::arg("mode"), py::arg("dtype"),
        py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"), py::arg("D"),
        py::arg("packed"), py::arg("training"), py::arg("device"), py::arg("allowed"),
        py::arg("L") = 1, py::arg("tf32") = true, py::arg("index") = -1);
  m.def("hands_to_torch", &hands_to_torch, py::arg("mode"), py::arg("dtype"), py::arg("T"),
        py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"), py::arg("D"), py::arg("packed"),
        py::arg("training"), py::arg("device"), py::arg("allowed"), py::arg("L") = 1,
        py::arg("tf32") = true, py::arg("index") = -1);
  m.def(
      "cuda_class",
      [](int64_t H, int64_t B) { return std::pair(cuda::class_of_H(H), cuda::class_of_B(B)); },
      py::arg("H"), py::arg("B"));
  m.def("rnn_takes_tf32", &rnn_takes_tf32);
  m.def("set_measured", &set_measured_of, py::arg("index"), py::arg("measured"));
  m.def("exclude_tile", &exclude_tile, py::arg("index"), py::arg("backward"), py::arg("tile"));
  m.def("set_experience_loader", &set_experience_loader, py::arg("load"));
  m.def("experience", &experience_dict, py::arg("index"));
}

}  // namespace fusedrnn::ops

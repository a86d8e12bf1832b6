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

// A problem as Python states it, and what a plan depends on beside it: a dict of mode, dtype, T, B,
// I, H, P, D, packed and training. L, tf32 and top_I may be left out: one layer, TF32, I.
struct Stated {
  Problem problem;
  cuda::Setting setting;
  std::string dtype, no_torch;

  Stated(const py::dict& d, std::string why_no_torch) : no_torch(std::move(why_no_torch)) {
    const auto number = [&](const char* name) { return d[name].cast<int64_t>(); };
    const auto given = [&](const char* name, int64_t otherwise) {
      return d.contains(name) ? d[name].cast<int64_t>() : otherwise;
    };
    dtype = d["dtype"].cast<std::string>();
    problem = problem_of(d);
    setting = {int(number("D")), given("L", 1), given("tf32", 1) != 0, given("top_I", 0)};
    if (dtype == "float16" || dtype == "bfloat16") setting.half = dtype.c_str();
    if (!no_torch.empty()) setting.no_torch = no_torch.c_str();
  }
  Stated(const Stated&) = delete;  // the setting points into it
  Stated& operator=(const Stated&) = delete;
};

py::dict dict_of(const cuda::Plan& plan, const Reasons& reasons) {
  py::dict d;
  d["kernel"] = cuda::name_of(plan.kernel);
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
  d["reason"] = reasons.chosen;
  d["rejected"] = py::tuple(py::cast(reasons.rejected));
  return d;
}

// The plan for one pass, and why.
py::dict cuda_plan_of(const py::dict& problem, const py::dict& device,
                      const Restriction& restriction, bool backward, int index) {
  const Stated stated(problem, "");
  Reasons reasons;
  const cuda::Plan plan =
      cuda_plan(backward ? cuda::Pass::kBackward : cuda::Pass::kForward, stated.problem,
                stated.setting, device_of(device), experienced(index), restriction, &reasons);
  return dict_of(plan, reasons);
}

// The choice for a layer: by_torch, forward and, in training, backward, each a plan as above.
py::dict cuda_choice_of(const py::dict& problem, const py::dict& device,
                        const Restriction& restriction, const std::string& no_torch, int index) {
  const Stated stated(problem, no_torch);
  const cuda::Device limits = device_of(device);
  const cuda::Experience known = experienced(index);
  cuda::ChoiceReasons reasons;
  const cuda::Choice choice =
      cuda::choose(stated.problem, stated.setting, limits, known, restriction, &reasons);
  const Restriction left = no_torch.empty() ? restriction : restriction.without_torch();
  const auto pass = [&](cuda::Pass pass) {
    const auto& plan = choice.pass[int(pass)];
    // Where there is none this says why.
    if (!plan) cuda_plan(pass, stated.problem, stated.setting, limits, known, left);
    return dict_of(*plan, reasons.pass[int(pass)]);
  };
  py::dict d;
  d["by_torch"] = choice.by_torch;
  d["forward"] = pass(cuda::Pass::kForward);
  d["backward"] = stated.problem.training ? py::object(pass(cuda::Pass::kBackward)) : py::none();
  return d;
}

void bind_restriction(py::module_& m) {
  const Restriction all;
  py::class_<Restriction>(m, "Restriction")
      .def(py::init(
               [](bool block, bool cluster, bool stepwise, bool torch, int tile, bool none_yields) {
                 return Restriction{block, cluster, stepwise, torch, tile, none_yields};
               }),
           py::kw_only(), py::arg("block") = all.block, py::arg("cluster") = all.cluster,
           py::arg("stepwise") = all.stepwise, py::arg("torch") = all.torch,
           py::arg("tile") = all.tile, py::arg("none_yields") = all.none_yields)
      .def_readonly("block", &Restriction::block)
      .def_readonly("cluster", &Restriction::cluster)
      .def_readonly("stepwise", &Restriction::stepwise)
      .def_readonly("torch", &Restriction::torch)
      .def_readonly("tile", &Restriction::tile)
      .def_readonly("none_yields", &Restriction::none_yields)
      .def_static("to_tile", &Restriction::to_tile, py::arg("tile"))
      .def(
          "__eq__", [](const Restriction& a, const Restriction& b) { return a == b; },
          py::is_operator())
      .def("__repr__", [](const Restriction& r) {
        const auto said = [](bool flag) { return flag ? "True" : "False"; };
        return c10::str("Restriction(block=", said(r.block), ", cluster=", said(r.cluster),
                        ", stepwise=", said(r.stepwise), ", torch=", said(r.torch),
                        ", tile=", r.tile, ", none_yields=", said(r.none_yields), ")");
      });
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
    const auto kernel = cuda::kernel_named(name);
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
    d["mode"] = spec(m.cell).name;
    d["backward"] = m.pass == cuda::Pass::kBackward;
    d["training"] = m.training;
    d["tf32"] = m.tf32;
    d["H"] = m.H;
    d["B"] = m.B;
    d["D"] = m.D;
    d["L"] = m.L;
    d["kernel"] = cuda::name_of(m.kernel);
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
  bind_restriction(m);
  m.def("cuda_restriction", &cuda_restriction);
  m.def("cuda_device", &cuda_device_of, py::arg("index"));
  m.def("cuda_plan", &cuda_plan_of, py::arg("problem"), py::arg("device"),
        py::arg("restriction") = Restriction(), py::arg("backward") = false, py::arg("index") = -1);
  m.def("cuda_choice", &cuda_choice_of, py::arg("problem"), py::arg("device"),
        py::arg("restriction") = Restriction(), py::arg("no_torch") = "", py::arg("index") = -1);
  m.def("cuda_plans_made", &plans_made);
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

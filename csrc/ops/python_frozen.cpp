// Frozen stacks and streams as Python sees them (fusedrnn/frozen.py, fusedrnn/stream.py).
#include <ATen/ops/empty.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>
#include <optional>

#include "ops/check.h"
#include "ops/frozen.h"
#include "ops/python.h"

namespace fusedrnn::ops {
namespace {

namespace py = pybind11;
using Frozen = frozen::Stack;

// Memory of a stream's dtype: a tensor's, or what any object shows by the buffer protocol. Whatever
// else there is to check of it costs more than a step should.
class Input {
 public:
  Input(PyObject* given, at::ScalarType type, at::IntArrayRef sizes) {
    if (THPVariable_Check(given)) {
      const Tensor& tensor = THPVariable_Unpack(given);
      check(tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == type,
            tensor.sizes(), type, sizes);
      data_ = tensor.const_data_ptr();
      return;
    }
    if (PyObject_GetBuffer(given, &buffer_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      throw py::type_error(
          std::string("fusedrnn: a stream takes a contiguous array or a Tensor, got ") +
          Py_TYPE(given)->tp_name);
    }
    held_ = true;
    const char* const wanted = type == at::kDouble ? "d" : "f";
    std::vector<int64_t> shape(buffer_.shape, buffer_.shape + buffer_.ndim);
    check(buffer_.format && std::strcmp(buffer_.format, wanted) == 0, shape, type, sizes);
    data_ = buffer_.buf;
  }
  ~Input() {
    if (held_) PyBuffer_Release(&buffer_);
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  const void* data() const { return data_; }

 private:
  void check(bool fits, at::IntArrayRef shape, at::ScalarType type, at::IntArrayRef sizes) {
    if (fits && shape == sizes) return;
    if (held_) PyBuffer_Release(&buffer_);
    held_ = false;
    TORCH_CHECK(false, "fusedrnn: a stream's input must be contiguous ", type, " ", sizes,
                " on the CPU, got ", shape);
  }

  Py_buffer buffer_{};
  bool held_ = false;
  const void* data_;
};

// A step that takes less keeps Python's lock: a thread that waits for the lock is woken by the
// system, which takes longer (4 threads on 2 cores, steps of 3 us: 0.29 times the steps of one).
constexpr double kShortMicroseconds = 6, kBytesPerMicrosecond = 5e4, kProductsPerMicrosecond = 5e4;

// A stream and what it writes into.
class PyStream {
 public:
  PyStream(std::shared_ptr<const Frozen> stack, int64_t rows) : stream_(std::move(stack), rows) {
    type_ = shape().computed == DType::kFloat64 ? at::kDouble : at::kFloat;
    make_output();
  }

  int64_t rows() const { return stream_.rows(); }
  py::object output() const { return output_; }

  py::object step(py::handle x) {
    const int64_t sizes[] = {stream_.rows(), shape().I};
    const Input in(x.ptr(), type_, sizes);
    std::optional<py::gil_scoped_release> release;
    if (!is_short_) release.emplace();
    stream_.run(in.data(), into_, 1);
    release.reset();
    return output_;
  }

  Tensor run(const Tensor& x) {
    TORCH_CHECK(x.dim() == 3 && x.size(1) == rows() && x.size(2) == shape().I &&
                    x.scalar_type() == type_ && x.is_cpu(),
                "fusedrnn: a stream's input must be ", type_, " [T, ", rows(), ", ", shape().I,
                "] on the CPU, got ", x.scalar_type(), " ", x.sizes());
    const Tensor in = x.contiguous();
    Tensor y = at::empty({x.size(0), rows(), shape().P}, type_);
    const py::gil_scoped_release release;
    stream_.run(in.const_data_ptr(), y.mutable_data_ptr(), x.size(0));
    return y;
  }

  void reset(int64_t row) { stream_.reset(row); }
  void join(int64_t count) {
    stream_.join(count);
    make_output();
  }
  void leave(int64_t row) {
    stream_.leave(row);
    make_output();
  }

  py::tuple states() const {
    Tensor h = at::empty({shape().L, rows(), shape().P}, type_), c;
    if (spec(shape().cell).has_c) c = at::empty({shape().L, rows(), shape().H}, type_);
    stream_.read_states(h.mutable_data_ptr(), c.defined() ? c.mutable_data_ptr() : nullptr);
    return py::make_tuple(h, c.defined() ? py::cast(c) : py::none());
  }
  void set_states(const Tensor& h, const OptionalTensor& c) {
    const auto memory = [&](const char* name, const Tensor& state, int64_t columns) {
      const int64_t sizes[] = {shape().L, rows(), columns};
      TORCH_CHECK(
          state.sizes() == at::IntArrayRef(sizes) && state.scalar_type() == type_ && state.is_cpu(),
          "fusedrnn: a stream's ", name, " must be ", type_, " ", at::IntArrayRef(sizes),
          " (L, B, *) on the CPU, got ", state.scalar_type(), " ", state.sizes());
      return state.contiguous();
    };
    const bool has_c = spec(shape().cell).has_c;
    TORCH_CHECK(c.has_value() == has_c, "fusedrnn: a stream of ", spec(shape().cell).name,
                has_c ? " needs c too: pass (h, c)" : " has no c: pass h alone");
    const Tensor of_h = memory("h", h, shape().P),
                 of_c = has_c ? memory("c", *c, shape().H) : Tensor();
    stream_.write_states(of_h.const_data_ptr(), has_c ? of_c.const_data_ptr() : nullptr);
  }

 private:
  const frozen::Shape& shape() const { return stream_.stack().shape(); }
  // What a step takes about, in microseconds: its weights come from L2 once, and are multiplied.
  double estimate() const {
    const double bytes = double(stream_.stack().bytes());
    double products = 0;
    for (int64_t l = 0; l < shape().L; ++l) {
      products += double(rows() * shape().rows()) * double(shape().inputs_of(l) + shape().P);
    }
    return bytes / kBytesPerMicrosecond + products / kProductsPerMicrosecond;
  }
  void make_output() {
    is_short_ = estimate() < kShortMicroseconds;
    const Tensor output = at::empty({rows(), shape().P}, type_);
    into_ = output.mutable_data_ptr();
    output_ = py::cast(output).attr("numpy")();
  }

  frozen::Stream stream_;
  at::ScalarType type_;
  bool is_short_ = true;
  py::object output_;
  void* into_ = nullptr;
};

}  // namespace

void bind_frozen(py::module_& m) {
  auto frozen_stack = py::class_<Frozen, std::shared_ptr<Frozen>>(m, "FrozenStack");
  frozen_stack
      .def(py::init([](const std::string& mode, int64_t L, int64_t D, bool has_biases,
                       bool projected, std::vector<Tensor> weights, std::vector<Tensor> scales) {
             const FrozenWeights given{
                 mode, L, D, has_biases, projected, std::move(weights), std::move(scales)};
             return std::const_pointer_cast<Frozen>(freeze(given));  // Python has no const
           }),
           py::arg("mode"), py::arg("num_layers"), py::arg("directions"), py::arg("has_biases"),
           py::arg("projected"), py::arg("weights"), py::arg("scales"))
      .def_property_readonly("bytes", &Frozen::bytes)
      .def_property_readonly("products", &Frozen::products)
      .def("unpacked", &unpacked, py::arg("layer"), py::arg("direction"), py::arg("recurrent"))
      .def("number", [](const std::shared_ptr<Frozen>& stack) { return number_of(stack); });
  frozen_stack.def(
      "step",
      [](const std::shared_ptr<Frozen>& stack, const Tensor& input, const OptionalTensor& hx,
         const OptionalTensor& cx) {
        const py::gil_scoped_release release;
        return step_frozen(stack, input, hx, cx);
      },
      py::arg("input"), py::arg("hx"), py::arg("cx"));
  m.def(
      "frozen_shape",
      [](int64_t number) {
        const frozen::Shape& s = stack_of(number)->shape();
        return std::tuple(s.L, s.D, s.H, s.P, spec(s.cell).has_c);
      },
      py::arg("number"));
  py::class_<PyStream>(m, "Stream")
      .def(py::init([](std::shared_ptr<Frozen> stack, int64_t rows) {
             return std::make_unique<PyStream>(std::move(stack), rows);
           }),
           py::arg("stack"), py::arg("rows"))
      .def_property_readonly("rows", &PyStream::rows)
      .def_property_readonly("output", &PyStream::output)
      .def("step", &PyStream::step, py::arg("x"))
      .def("run", &PyStream::run, py::arg("x"))
      .def("reset", &PyStream::reset, py::arg("row"))
      .def("join", &PyStream::join, py::arg("count"))
      .def("leave", &PyStream::leave, py::arg("row"))
      .def("states", &PyStream::states)
      .def("set_states", &PyStream::set_states, py::arg("h"), py::arg("c"));
}

}  // namespace fusedrnn::ops

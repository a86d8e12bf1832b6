// See check.h.
#include "ops/check.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cstring>

#include "frozen/frozen.h"

namespace fusedrnn::ops {
namespace {

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

void check_layout(const char* name, const Tensor& tensor) {
  TORCH_CHECK_TYPE(tensor.defined(), "fusedrnn: ", name, " must be a Tensor, got None");
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor.is_nested(), "fusedrnn: ", name,
                              " must not be nested: use torch.nn.utils.rnn.pack_sequence");
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == at::kStrided, "fusedrnn: ", name,
                              " must be strided, got ", tensor.layout(), ": call to_dense()");
}

}  // namespace

void check_devices(const Operands& o) {
  check_layout("input", o.input);
  for (const Tensor& weight : o.weights.all) check_layout("weights", weight);
  if (o.hx) check_layout("hx", *o.hx);
  if (o.cx) check_layout("cx", *o.cx);
  if (o.course.lengths) check_layout("lengths", *o.course.lengths);
  if (o.course.resets) check_layout("resets", *o.course.resets);
  for (const Tensor& weight : o.weights.all) {
    TORCH_CHECK(weight.device() == o.input.device(),
                "Input and parameter tensors are not at the same device, found input tensor at ",
                o.input.device(), " and parameter tensor at ", weight.device());
  }
  for (const OptionalTensor* state : {&o.hx, &o.cx, &o.course.reset_h, &o.course.reset_c}) {
    TORCH_CHECK(!*state || (*state)->device() == o.input.device(),
                "Input and hidden tensors are not at the same device, found input tensor at ",
                o.input.device(), " and hidden tensor at ", (*state)->device());
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

std::string fault_of_packed(at::IntArrayRef batch_sizes, int64_t N) {
  const auto refuse = [](auto... words) { return c10::str("batch_sizes must ", words...); };
  int64_t before = 0;
  for (size_t t = 0; t < batch_sizes.size(); ++t) {
    const int64_t rows = batch_sizes[t];
    if (rows <= 0 || (t > 0 && rows > batch_sizes[t - 1]))
      return refuse("be positive and never rise, got ", rows, " at step ", t);
    if (N >= 0 && rows > N - before)  // compared like this no sum overflows
      return refuse("add up to the ", N, " rows of input, got more by step ", t);
    before += rows;
  }
  if (N >= 0 && before != N) return refuse("add up to the ", N, " rows of input, got ", before);
  return "";
}

std::vector<int64_t> packed_offsets(at::IntArrayRef batch_sizes) {
  std::vector<int64_t> offsets(batch_sizes.size() + 1, 0);
  for (size_t t = 0; t < batch_sizes.size(); ++t) offsets[t + 1] = offsets[t] + batch_sizes[t];
  return offsets;
}

Problem sizes_of(const Operands& o) {
  const DirectionWeights w = o.weights.of(0);
  Problem p{};
  p.cell = o.cell;
  p.projected = o.weights.projected;
  p.training = o.train;
  p.every = o.train ? o.course.every : 0;
  p.packed = o.packed();
  p.I = w.w_ih->size(1);
  p.H = w.w_ih->size(0) / gates_of(o.cell);
  p.P = w.w_hh->size(1);
  p.T = p.packed ? 0 : o.input.size(0);
  p.B = p.packed ? 0 : o.input.size(1);
  return p;
}

namespace {

// Contiguous. Refuses a tensor whose storage was freed or cut short behind its back: its sizes lie.
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

Problem checked_sizes(const Operands& o) {
  TORCH_CHECK_TYPE(o.input.defined(), "fusedrnn: input must be a Tensor, got None");
  TORCH_CHECK(o.input.dim() == (o.packed() ? 2 : 3), "fusedrnn: input must be ",
              o.packed() ? "2-D (N, I) with batch_sizes" : "3-D (T, B, I)", ", got ",
              o.input.sizes());
  const DirectionWeights w = o.weights.of(0);
  TORCH_CHECK(w.w_ih->dim() == 2 && w.w_hh->dim() == 2,
              "fusedrnn: w_ih and w_hh must be matrices, got ", w.w_ih->sizes(), " and ",
              w.w_hh->sizes());
  const Problem p = sizes_of(o);
  TORCH_CHECK(o.input.size(-1) == p.I, "input.size(-1) must be equal to input_size. Expected ", p.I,
              ", got ", o.input.size(-1));
  TORCH_CHECK(p.I > 0 && p.H > 0 && p.P > 0,
              "fusedrnn: input_size, hidden_size and the size of h must be greater than zero, got ",
              p.I, ", ", p.H, " and ", p.P);
  return p;
}

// T and B of packed rows.
void fit_batch_sizes(const Operands& o, bool read_sizes, Call* call) {
  const Tensor& sizes = *o.batch_sizes;
  TORCH_CHECK(sizes.dim() == 1 && sizes.scalar_type() == at::kLong && sizes.device().is_cpu(),
              "fusedrnn: batch_sizes must be an int64 vector on the CPU, got ", sizes.scalar_type(),
              " ", sizes.sizes(), " on ", sizes.device());
  Problem& p = call->problem;
  p.T = sizes.numel();
  if (!read_sizes) {
    const OptionalTensor& state = o.hx ? o.hx : o.cx;
    p.B = state && state->dim() > 1 ? state->size(1) : 0;
  } else if (p.T > 0) {
    const Tensor rows = in_memory(sizes);
    const at::IntArrayRef steps{rows.const_data_ptr<int64_t>(), size_t(p.T)};
    const std::string fault = fault_of_packed(steps, o.input.size(0));
    TORCH_CHECK(fault.empty(), "fusedrnn: ", fault);
    call->offsets = packed_offsets(steps);
    p.B = steps[0];
  }
}

// One of lengths and resets: where it may be, and what.
void check_rows(const char* name, const Tensor& tensor, at::ScalarType type, at::IntArrayRef shape,
                const char* symbols, const Tensor& input) {
  TORCH_CHECK(tensor.scalar_type() == type && tensor.sizes() == shape, "fusedrnn: ", name,
              " must be ", type, " ", shape, " ", symbols, ", got ", tensor.scalar_type(), " ",
              tensor.sizes());
  TORCH_CHECK(tensor.is_cpu() || tensor.device() == input.device(), "fusedrnn: ", name,
              " must be on the CPU or on ", input.device(), " as input is, got ", tensor.device());
}

void fit_course(const Operands& o, const Call& call) {
  const Course& course = o.course;
  const Problem& p = call.problem;
  TORCH_CHECK(!o.packed() || !course.is_cut(), "fusedrnn: ", course.lengths ? "lengths" : "resets",
              " must be None with packed input, which has its own lengths: pass padded input");
  if (course.lengths) {
    check_rows("lengths", *course.lengths, at::kLong, {p.B}, "(B)", o.input);
  }
  if (course.resets) {
    check_rows("resets", *course.resets, at::kBool, {p.T, p.B}, "(T, B)", o.input);
  }
  TORCH_CHECK(course.every >= 0, "fusedrnn: every must be 0 or more, got ", course.every);
  const auto state = [&](const char* name, const OptionalTensor& given, int64_t columns,
                         const char* symbols) {
    if (!given) return;
    TORCH_CHECK(course.resets, "fusedrnn: ", name, " must be None without resets");
    const bool one = given->dim() == 3 && given->size(1) == 1;
    check_tensor(name, *given, {call.D, one ? 1 : p.B, columns}, symbols, o.input);
  };
  state("reset_h", course.reset_h, p.P, "(D, B or 1, P)");
  TORCH_CHECK(!course.reset_c || spec(o.cell).has_c, "fusedrnn: only ",
              names_of_cells([](const CellSpec& each) { return each.has_c; }),
              " takes reset_c, got one for ", spec(o.cell).name);
  state("reset_c", course.reset_c, p.H, "(D, B or 1, H)");
}

// Where rows end and are cut, in `call`. What lies on a device the host waits for.
void read_course(const Course& course, Cuts cuts, Call* call) {
  const Problem& p = call->problem;
  if (!course.is_cut() || p.B == 0) return;
  const auto on_host = [](const OptionalTensor& given) {
    return given ? in_memory(given->cpu()) : Tensor();
  };
  const Tensor lengths = on_host(course.lengths);
  Tensor resets = on_host(course.resets);
  const int64_t* ends = lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr;
  for (int64_t b = 0; ends && b < p.B; ++b) {
    TORCH_CHECK(ends[b] >= 0 && ends[b] <= p.T, "fusedrnn: lengths must be from 0 to T = ", p.T,
                ", got ", ends[b], " for row ", b);
  }
  const bool* const bits = resets.defined() ? resets.const_data_ptr<bool>() : nullptr;
  const bool none = !bits || !std::memchr(bits, 1, p.T * p.B), in_place = cuts == Cuts::kInPlace;
  auto segments = std::make_shared<Segments>(p.T, p.B, ends, in_place ? nullptr : bits);
  if (!segments->none()) call->segments = std::move(segments);
  if (none) return;
  if (in_place) call->resets = std::move(resets);
  // Where one has a row for all and the other a row for each, both get one for each: kernels go
  // through the two alike.
  const auto rows = [](const OptionalTensor& given) { return given ? given->size(1) : 1; };
  const int64_t most = std::max(rows(course.reset_h), rows(course.reset_c));
  const auto state = [&](const OptionalTensor& given) {
    return given ? in_memory(given->expand({-1, most, -1})) : Tensor();
  };
  call->reset_h = state(course.reset_h);
  call->reset_c = state(course.reset_c);
}

}  // namespace

Call fit(const Operands& o, bool read_sizes) {
  Call call{};
  call.D = o.weights.directions();
  call.has_biases = o.weights.has_biases;
  call.problem = checked_sizes(o);
  if (o.packed()) fit_batch_sizes(o, read_sizes, &call);
  const Problem& p = call.problem;
  TORCH_CHECK(p.T > 0, "Expected sequence length to be larger than 0 in RNN");
  const Tensor& like = o.stored == Stored::kAsInput ? o.input : *o.weights.of(0).w_ih;
  for (int64_t d = 0; d < call.D; ++d) {
    each_weight(p, o.weights.of(d),
                [&](const char* name, const Tensor& weight, at::IntArrayRef shape,
                    const char* symbols) { check_tensor(name, weight, shape, symbols, like); });
  }
  if (o.hx) check_tensor("hx", *o.hx, {call.D, p.B, p.P}, "(D, B, P)", o.input);
  TORCH_CHECK(!o.cx || spec(o.cell).has_c, "fusedrnn: only ",
              names_of_cells([](const CellSpec& each) { return each.has_c; }),
              " takes cx, got one for ", spec(o.cell).name);
  if (o.cx) check_tensor("cx", *o.cx, {call.D, p.B, p.H}, "(D, B, H)", o.input);
  fit_course(o, call);
  call.states = o.course.states && spec(o.cell).has_c;
  const int64_t every = p.keeps_some() ? p.every : 1;
  call.kept_rows = o.packed() ? o.input.size(0) / every : p.T / every * p.B;
  return call;
}

Call check(const Operands& o, Cuts cuts) {
  Call call = fit(o);
  const bool low = o.stored == Stored::kBFloat16 && o.input.scalar_type() == at::kBFloat16;
  call.problem.dtypes = all_of(low ? DType::kFloat32 : dtype_of(o.input.scalar_type()));
  if (o.stored == Stored::kBFloat16) call.problem.dtypes.stored = DType::kBFloat16;
  const bool narrow = o.course.bfloat16 && call.problem.dtypes.computed == DType::kFloat32;
  if (narrow) call.problem.dtypes.multiplied = DType::kBFloat16;
  call.weights.reserve(o.weights.all.size());
  call.frozen = o.frozen;
  if (o.frozen.stack) {
    call.problem.frozen = true;
    call.problem.dtypes = o.frozen.stack->shape().dtypes();
  }
  for (const Tensor& weight : o.weights.all) {
    call.weights.push_back(o.frozen.stack ? weight : in_memory(weight));
  }
  if (o.hx) call.hx = in_memory(*o.hx);
  if (o.cx) call.cx = in_memory(*o.cx);
  call.input = in_memory(o.input);
  read_course(o.course, cuts, &call);
  return call;
}

void fit_backward(const Call& call, const Operands& o, const Cotangents& c) {
  const int64_t D = call.D, B = call.problem.B, H = call.problem.H, P = call.problem.P;
  const size_t first = 3 + o.weights.all.size();
  TORCH_CHECK(c.needs.size() == first || c.needs.size() == first + 2,
              "fusedrnn: needs must have an entry for input, hx, cx and each of the ",
              o.weights.all.size(), " weights, or two more for reset_h and reset_c, got ",
              c.needs.size());
  const bool resets = c.needs.size() > first;
  TORCH_CHECK((o.hx || !c.needs[1]) && (o.cx || !c.needs[2]) &&
                  (!resets || ((o.course.reset_h || !c.needs[first]) &&
                               (o.course.reset_c || !c.needs[first + 1]))),
              "fusedrnn: the gradient of a state that was not given was asked for");
  std::vector<int64_t> y_shape(o.input.sizes().begin(), o.input.sizes().end() - 1);
  y_shape.push_back(D * P);
  check_tensor("output", c.output, y_shape, "(*, D*P)", o.input);
  if (c.grad_output) check_tensor("grad_output", *c.grad_output, y_shape, "(*, D*P)", o.input);
  if (c.grad_h_n) check_tensor("grad_h_n", *c.grad_h_n, {D, B, P}, "(D, B, P)", o.input);
  if (c.grad_c_n && spec(o.cell).has_c)
    check_tensor("grad_c_n", *c.grad_c_n, {D, B, H}, "(D, B, H)", o.input);
  if (c.grad_states && spec(o.cell).has_c) {
    y_shape.back() = D * H;
    check_tensor("grad_states", *c.grad_states, y_shape, "(*, D*H)", o.input);
  }
}

BackwardCall check_backward(const Operands& o, const Cotangents& c, Cuts cuts,
                            int64_t (*reserve_width)(const Problem& problem)) {
  BackwardCall call{};
  static_cast<Call&>(call) = check(o, cuts);
  fit_backward(call, o, c);
  check_tensor("reserve", c.reserve, {call.D, call.kept_rows, reserve_width(call.direction(0))},
               "(D, N, width), what layer(train=True) made", call.input);
  if (c.grad_output) call.dy = in_memory(*c.grad_output);
  if (c.grad_h_n) call.dh_n = in_memory(*c.grad_h_n);
  if (c.grad_c_n && spec(o.cell).has_c) call.dc_n = in_memory(*c.grad_c_n);
  if (c.grad_states && spec(o.cell).has_c) call.dstates = in_memory(*c.grad_states);
  call.y = in_memory(c.output);
  call.reserve = in_memory(c.reserve);

  auto gradient = [&](bool wanted, const Tensor& of) {
    return !wanted ? Tensor() : call.problem.B == 0 ? at::zeros_like(of) : at::empty_like(of);
  };
  call.dx = gradient(c.needs[0], call.input);
  call.dhx = gradient(c.needs[1], call.hx);
  call.dcx = gradient(c.needs[2], call.cx);
  for (size_t i = 0; i < call.weights.size(); ++i) {
    call.dweights.push_back(gradient(c.needs[3 + i], call.weights[i]));
  }
  const size_t first = 3 + call.weights.size();
  if (c.needs.size() > first) {
    // Where nothing is cut they are zeros.
    const auto reset = [&](bool wanted, const OptionalTensor& of) {
      return wanted ? at::zeros_like(*of, at::MemoryFormat::Contiguous) : Tensor();
    };
    call.dreset_h = reset(c.needs[first], o.course.reset_h);
    call.dreset_c = reset(c.needs[first + 1], o.course.reset_c);
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
  for (const Tensor& gradient : {dreset_h, dreset_c}) {
    if (gradient.defined()) asked_for.push_back(gradient);
  }
  return asked_for;
}

Problem Call::direction(int64_t d) const {
  Problem p = problem;
  p.reverse = d == 1;
  p.offsets = p.packed ? offsets.data() : nullptr;
  p.cuts = cuts[d].empty() ? nullptr : cuts[d].data();
  return p;
}

}  // namespace fusedrnn::ops

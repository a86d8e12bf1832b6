// What an operator's tensors must be, for every device: one set of checks, in torch.nn's words
// where it has some.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/layer.h"
#include "ops/segments.h"

namespace fusedrnn::ops {

// A layer's operands once they are known to fit together. Tensors here are contiguous.
struct Call {
  int64_t D;
  Problem problem;               // of the forward direction
  std::vector<int64_t> offsets;  // empty unless packed
  Tensor input, hx, cx;
  std::vector<Tensor> weights;
  FrozenLayer frozen;
  bool has_biases;
  bool states;  // c of every step is a result
  // Rows of a direction's reserve: as many as there can be. How many there are only the data of
  // lengths and resets tell, and shapes do not depend on that.
  int64_t kept_rows;
  std::shared_ptr<const Segments> segments;  // null: no row ends early or is cut
  // What the CPU kernels cut themselves: [T, B] on the host, undefined: nothing; and from it what
  // they read, for each direction.
  Tensor resets;
  std::vector<uint8_t> cuts[2];
  Tensor reset_h, reset_c;
  bool inner = false;  // made of another call: nobody else sees its results

  // Direction d's problem. It points into this object.
  Problem direction(int64_t d) const;
  DirectionWeights weights_of(int64_t d) const {
    return WeightList{weights, has_biases, problem.projected}.of(d);
  }
  // N: rows of all steps together.
  int64_t rows() const { return problem.packed ? offsets.back() : problem.T * problem.B; }
};

// layer_backward's likewise, and its results: allocated, not yet computed (zero where the batch is
// empty). An undefined tensor is a gradient that was not given, or is not asked for.
struct BackwardCall : Call {
  Tensor y, reserve, dy, dh_n, dc_n, dstates;
  Tensor dx, dhx, dcx;
  std::vector<Tensor> dweights;
  Tensor dreset_h, dreset_c;

  DirectionWeights dweights_of(int64_t d) const {
    return WeightList{dweights, has_biases, problem.projected}.of(d);
  }
  std::vector<Tensor> results() const;
};

// No tracer, transform or mode is watching, and the tensor is the memory that it seems to be.
bool is_plain(const Tensor& tensor);

// Devices and layouts. Runs before dispatch: otherwise torch would route a mix of meta and CPU
// tensors to the meta kernel and hide the error.
void check_devices(const Operands& o);

// What holds of any tensors, complex or fake ones too: they fit together in shape, dtype and
// device. The result has no tensors and no dtype yet. With packed rows, B is read from batch_sizes;
// without `read_sizes`, because they hold no data, it is taken from the states.
Call fit(const Operands& o, bool read_sizes = true);
void fit_backward(const Call& call, const Operands& o, const Cotangents& c);

// How a state is cut within a row: by kernels that do it themselves, or by taking what lies between
// cuts as sequences of its own.
enum class Cuts { kInPlace, kAsSegments };

Call check(const Operands& o, Cuts cuts);
BackwardCall check_backward(const Operands& o, const Cotangents& c, Cuts cuts,
                            int64_t (*reserve_width)(const Problem& problem));

// The sizes that input and the first direction's weights state, whether or not the others agree.
// T and B of packed rows are left 0: their batch_sizes tell.
Problem sizes_of(const Operands& o);

// The shapes of a direction's weights, given its sizes: calls f(name, weight, shape, symbols) for
// each that there is.
template <class F>
void each_weight(const Problem& p, const DirectionWeights& w, const F& f) {
  const int64_t GH = gates_of(p.cell) * p.H;
  f("w_ih", *w.w_ih, {GH, p.I}, "(G*H, I)");
  f("w_hh", *w.w_hh, {GH, p.projected ? p.P : p.H}, p.projected ? "(G*H, P)" : "(G*H, H)");
  if (w.b_ih) f("b_ih", *w.b_ih, {GH}, "(G*H)");
  if (w.b_hh) f("b_hh", *w.b_hh, {GH}, "(G*H)");
  if (w.w_hr) f("w_hr", *w.w_hr, {p.P, p.H}, "(P, H)");
}

// Why no packed rows have such batch_sizes, in words; empty if some have: each step has rows, none
// has more than the one before, and all of them add up to N (-1: to anything).
std::string fault_of_packed(at::IntArrayRef batch_sizes, int64_t N);
// Where each step of packed rows begins, T+1 of them.
std::vector<int64_t> packed_offsets(at::IntArrayRef batch_sizes);

// The address of a tensor's element; null for a tensor that is not there.
inline const void* address(const Tensor& tensor, int64_t element = 0) {
  if (!tensor.defined()) return nullptr;
  return static_cast<const char*>(tensor.const_data_ptr()) + element * tensor.element_size();
}
inline const void* address(const Tensor* tensor) { return tensor ? address(*tensor) : nullptr; }
// Likewise, to write to.
inline void* mutable_address(const Tensor& tensor, int64_t element = 0) {
  if (!tensor.defined()) return nullptr;
  return static_cast<char*>(tensor.mutable_data_ptr()) + element * tensor.element_size();
}
inline void* mutable_address(const Tensor* tensor) {
  return tensor ? mutable_address(*tensor) : nullptr;
}

}  // namespace fusedrnn::ops

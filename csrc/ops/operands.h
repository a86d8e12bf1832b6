// What an operator was called with, by name. Made once from a schema's argument list (schema.h) and
// handed on as it is; nothing behind that door counts weights or asks for a mode by its name.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>

#include "model/problem.h"

namespace fusedrnn::frozen {
class Stack;  // frozen/frozen.h
}

namespace fusedrnn::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The cell that an operator's `mode` names; throws where there is none.
Cell cell_of(c10::string_view mode);
DType dtype_of(at::ScalarType type);
// The names in the table of those cells that `is` holds for: "LSTM, GRU or RNN_TANH".
std::string names_of_cells(bool (*is)(const CellSpec&));

// The weights of one direction. Null: the layer has none of this kind.
struct DirectionWeights {
  const Tensor *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
};

// Weights in torch's order: for each direction w_ih, w_hh, then b_ih and b_hh, then w_hr.
struct WeightList {
  at::TensorList all;
  bool has_biases, projected;

  int64_t per_direction() const { return 2 + (has_biases ? 2 : 0) + (projected ? 1 : 0); }
  int64_t directions() const { return int64_t(all.size()) / per_direction(); }
  DirectionWeights of(int64_t direction) const {
    const Tensor* const w = all.data() + direction * per_direction();
    return {w, w + 1, has_biases ? w + 2 : nullptr, has_biases ? w + 3 : nullptr,
            projected ? w + per_direction() - 1 : nullptr};
  }
  // Those of `count` directions, from `first` on.
  WeightList part(int64_t first, int64_t count) const {
    return {all.slice(first * per_direction(), count * per_direction()), has_biases, projected};
  }
};

// The weights of one layer, of one or two directions; throws if they are any other number.
WeightList weights_of_layer(Cell cell, bool has_biases, at::TensorList all);
// The weights of L layers of D directions; throws likewise.
WeightList weights_of_stack(Cell cell, bool has_biases, at::TensorList all, int64_t L, int64_t D);

// What a layer's weights are stored as.
enum class Stored { kAsInput, kBFloat16 };

// How the rows of padded input run, beyond what torch.nn knows of: where each ends, where its state
// is cut; what is kept of all steps; and what is multiplied.
struct Course {
  OptionalTensor lengths;           // [B] int64; nullopt: all T
  OptionalTensor resets;            // [T, B] bool: the state is cut before this step
  OptionalTensor reset_h, reset_c;  // [D, B or 1, P or H]: what it is then; nullopt: zeros
  bool states = false;              // c of every step is a result
  // Steps from one state that is kept for backward to the next; 0: all gates are kept.
  int64_t every = 0;
  // Products may be of numbers rounded to bfloat16, where the machine has instructions for that.
  bool bfloat16 = false;

  bool is_cut() const { return lengths || resets; }
};

// A layer of a frozen stack, on the CPU. The weights beside it then only have their sizes.
struct FrozenLayer {
  const frozen::Stack* stack = nullptr;  // null: weights are what they are
  int64_t layer = 0;
};

// A layer's operands. It owns nothing: whoever makes it keeps the tensors.
struct Operands {
  const Tensor& input;  // [T, B, I]; packed [N, I]
  const OptionalTensor &batch_sizes, &hx, &cx;
  WeightList weights;
  Cell cell;
  bool train;
  Course course = {};
  Stored stored = Stored::kAsInput;
  FrozenLayer frozen = {};

  bool packed() const { return batch_sizes.has_value(); }

  // Whether `condition` holds for any tensor that a gradient may be asked for.
  template <class Condition>
  bool any(const Condition& condition) const {
    for (const OptionalTensor* state : {&hx, &cx, &course.reset_h, &course.reset_c}) {
      if (*state && (*state)->defined() && condition(**state)) return true;
    }
    if (input.defined() && condition(input)) return true;
    for (const Tensor& weight : weights.all) {
      if (condition(weight)) return true;
    }
    return false;
  }
};

// What layer_backward takes beside a layer's operands: gradients of its results, two of the results
// and, for input, hx, cx, each weight and perhaps reset_h and reset_c, whether its gradient is
// asked for.
struct Cotangents {
  const OptionalTensor &grad_output, &grad_h_n, &grad_c_n;
  const Tensor &output, &reserve;
  const c10::List<bool>& needs;
  OptionalTensor grad_states = {};

  template <class Condition>
  bool any(const Condition& condition) const {
    for (const OptionalTensor* slope : {&grad_output, &grad_h_n, &grad_c_n, &grad_states}) {
      if (*slope && (*slope)->defined() && condition(**slope)) return true;
    }
    return false;
  }
};

// What the operator `frozen` is given: a frozen stack is known by its number (frozen.h).
struct FrozenCall {
  const Tensor& input;
  const OptionalTensor &batch_sizes, &hx, &cx;
  Course course;
  int64_t number = 0;
  int64_t states = 0;  // Stack::states
};

// L layers of D directions: states and weights are those of all layers in a row.
struct Stack : Operands {
  int64_t L, D;
  double dropout;
  int64_t states = 0;  // c of every step: 0 of no layer, 1 of the top one, 2 of all
};

// One step of a cell.
struct Step {
  const Tensor &input, &hx;  // [B, I], [B, H]
  const OptionalTensor& cx;
  DirectionWeights weights;
  Cell cell;
};

}  // namespace fusedrnn::ops

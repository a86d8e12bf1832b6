// The layer operators called through the dispatcher.
#include <ATen/core/dispatch/Dispatcher.h>

#include "ops/schema.h"

namespace fusedrnn::ops {
namespace {

template <class Function>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

using Layer = decltype(layer_op<layer>);
using Frozen = decltype(frozen_op<frozen_stack>);
using LayerBackward = decltype(layer_backward_op<layer_backward>);

template <class Operator>
std::vector<Tensor> call_backward(const Operator& op, const Operands& o, const Cotangents& c) {
  return op.call(c.grad_output, c.grad_h_n, c.grad_c_n, o.input, o.batch_sizes, o.hx, o.cx,
                 o.weights.all, c.output, c.reserve, spec(o.cell).name, o.weights.has_biases,
                 c.needs, c.grad_states, o.course.lengths, o.course.resets, o.course.reset_h,
                 o.course.reset_c, o.course.every, o.course.bfloat16);
}

}  // namespace

LayerResult layer(const Operands& o) {
  static const auto op = operator_named<Layer>("fusedrnn::layer");
  return op.call(o.input, o.batch_sizes, o.hx, o.cx, o.weights.all, spec(o.cell).name,
                 o.weights.has_biases, o.train, o.course.lengths, o.course.resets, o.course.reset_h,
                 o.course.reset_c, o.course.states, o.course.every, o.course.bfloat16);
}

StackResult frozen_stack(const FrozenCall& call) {
  static const auto op = operator_named<Frozen>("fusedrnn::frozen");
  return op.call(call.input, call.batch_sizes, call.hx, call.cx, call.number, call.course.lengths,
                 call.course.resets, call.course.reset_h, call.course.reset_c, call.states);
}

std::vector<Tensor> layer_backward(const Operands& o, const Cotangents& c) {
  static const auto op = operator_named<LayerBackward>("fusedrnn::layer_backward");
  return call_backward(op, o, c);
}

StackResult layer_reference(const Operands& o) {
  static const auto op = operator_named<StackResult(
      const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
      at::TensorList, c10::string_view, bool, const OptionalTensor&, const OptionalTensor&,
      const OptionalTensor&, const OptionalTensor&)>("fusedrnn::layer_reference");
  return op.call(o.input, o.batch_sizes, o.hx, o.cx, o.weights.all, spec(o.cell).name,
                 o.weights.has_biases, o.course.lengths, o.course.resets, o.course.reset_h,
                 o.course.reset_c);
}

std::vector<Tensor> layer_backward_reference(const Operands& o, const Cotangents& c) {
  static const auto op = operator_named<LayerBackward>("fusedrnn::layer_backward_reference");
  return call_backward(op, o, c);
}

}  // namespace fusedrnn::ops

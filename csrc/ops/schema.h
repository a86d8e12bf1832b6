// The operators' argument lists, each once: an adaptor names what it is given and calls a function
// of those names. schema.cpp holds the schemas themselves.
#pragma once

#include <tuple>
#include <vector>

#include "ops/layer.h"

namespace fusedrnn::ops {

template <LayerResult (*f)(const Operands&)>
LayerResult layer_op(const Tensor& input, const OptionalTensor& batch_sizes,
                     const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
                     c10::string_view mode, bool has_biases, bool train,
                     const OptionalTensor& lengths, const OptionalTensor& resets,
                     const OptionalTensor& reset_h, const OptionalTensor& reset_c, bool states,
                     int64_t every, bool bfloat16) {
  const Cell cell = cell_of(mode);
  return f({input, batch_sizes, hx, cx, weights_of_layer(cell, has_biases, weights), cell, train,
            Course{lengths, resets, reset_h, reset_c, states, every, bfloat16}});
}

template <std::vector<Tensor> (*f)(const Operands&, const Cotangents&)>
std::vector<Tensor> layer_backward_op(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
    const OptionalTensor& grad_c_n, const Tensor& input, const OptionalTensor& batch_sizes,
    const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
    const Tensor& output, const Tensor& reserve, c10::string_view mode, bool has_biases,
    const c10::List<bool>& needs, const OptionalTensor& grad_states, const OptionalTensor& lengths,
    const OptionalTensor& resets, const OptionalTensor& reset_h, const OptionalTensor& reset_c,
    int64_t every, bool bfloat16) {
  const Cell cell = cell_of(mode);
  return f({input, batch_sizes, hx, cx, weights_of_layer(cell, has_biases, weights), cell,
            /*train=*/true,
            Course{lengths, resets, reset_h, reset_c, /*states=*/false, every, bfloat16}},
           {grad_output, grad_h_n, grad_c_n, output, reserve, needs, grad_states});
}

template <StackResult (*f)(const Stack&)>
StackResult stack_op(const Tensor& input, const OptionalTensor& batch_sizes,
                     const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList weights,
                     c10::string_view mode, bool has_biases, int64_t num_layers, double dropout,
                     bool train, bool bidirectional, const OptionalTensor& lengths,
                     const OptionalTensor& resets, const OptionalTensor& reset_h,
                     const OptionalTensor& reset_c, int64_t states, int64_t every) {
  const Cell cell = cell_of(mode);
  const int64_t D = bidirectional ? 2 : 1;
  const WeightList named = weights_of_stack(cell, has_biases, weights, num_layers, D);
  const Course course{lengths, resets, reset_h, reset_c, states > 0, every};
  return f(
      {{input, batch_sizes, hx, cx, named, cell, train, course}, num_layers, D, dropout, states});
}

template <StackResult (*f)(const FrozenCall&)>
StackResult frozen_op(const Tensor& input, const OptionalTensor& batch_sizes,
                      const OptionalTensor& hx, const OptionalTensor& cx, int64_t number,
                      const OptionalTensor& lengths, const OptionalTensor& resets,
                      const OptionalTensor& reset_h, const OptionalTensor& reset_c,
                      int64_t states) {
  const Course course{lengths, resets, reset_h, reset_c, states > 0};
  return f({input, batch_sizes, hx, cx, course, number, states});
}

template <StepResult (*f)(const Step&)>
StepResult cell_op(const Tensor& input, const Tensor& hx, const OptionalTensor& cx,
                   const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                   const OptionalTensor& b_hh, c10::string_view mode) {
  const auto maybe = [](const OptionalTensor& t) { return t ? &*t : nullptr; };
  return f({input, hx, cx, {&w_ih, &w_hh, maybe(b_ih), maybe(b_hh), nullptr}, cell_of(mode)});
}

}  // namespace fusedrnn::ops

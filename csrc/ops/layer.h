// Declarations shared by the operator sources: the signature of a layer and its pieces.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "cpu/params.h"

namespace fusedrnn::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using LayerResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // output, h_n, c_n, reserve

Cell cell_of(c10::string_view mode);
DType dtype_of(at::ScalarType type);
// Weights of one direction: w_ih, w_hh, then b_ih and b_hh, then w_hr.
int64_t weights_of_direction(Cell cell, bool has_biases, int64_t count);
cpu::Team team();

// Operators, called through the dispatcher so that autograd, tracing and fake tensors see them.
LayerResult layer(const Tensor& input, const OptionalTensor& batch_sizes, const OptionalTensor& hx,
                  const OptionalTensor& cx, at::TensorList weights, c10::string_view mode,
                  bool has_biases, bool train);
std::vector<Tensor> layer_backward(const OptionalTensor& grad_output,
                                   const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                                   const Tensor& input, const OptionalTensor& batch_sizes,
                                   const OptionalTensor& hx, const OptionalTensor& cx,
                                   at::TensorList weights, const Tensor& output,
                                   const Tensor& reserve, c10::string_view mode, bool has_biases,
                                   const c10::List<bool>& needs);

// The gradients of layer_backward's results: `slopes` theirs, undefined where there is none;
// `tensors` grad_output, grad_h_n, grad_c_n, input, hx, cx and the weights. Returns those that are
// wanted. Python's, because it takes a transform of the definition (fusedrnn/transforms.py).
using SecondBackward = std::function<std::vector<Tensor>(
    const std::vector<Tensor>& slopes, const std::vector<Tensor>& tensors,
    const OptionalTensor& batch_sizes, const std::string& mode, bool has_biases,
    const std::vector<bool>& needs, const std::vector<bool>& wanted)>;
SecondBackward& second_backward();

std::tuple<Tensor, Tensor, Tensor> stack(const Tensor& input, const OptionalTensor& batch_sizes,
                                         const OptionalTensor& hx, const OptionalTensor& cx,
                                         at::TensorList weights, c10::string_view mode,
                                         bool has_biases, int64_t num_layers, double dropout,
                                         bool train, bool bidirectional);
std::tuple<Tensor, Tensor> cell(const Tensor& input, const Tensor& hx, const OptionalTensor& cx,
                                const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                                const OptionalTensor& b_hh, c10::string_view mode);

// A layer on a CPU whose weights are bfloat16 and are read as such, which is half of the bytes. The
// rest is float32 or bfloat16, the results as input is; computed is in float32. For plain tensors
// without gradients, which keeps_bfloat16 tells.
LayerResult layer_of_bfloat16(const Tensor& input, const OptionalTensor& batch_sizes,
                              const OptionalTensor& hx, const OptionalTensor& cx,
                              at::TensorList weights, c10::string_view mode, bool has_biases);
bool keeps_bfloat16(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                    at::TensorList weights);

// A cell on a CPU for plain tensors without gradients or autocast, without a layer's views and
// results (LSTM B1 H128: 13.8 us by way of a layer, 11.7 so); nothing for any others, right or
// wrong.
std::optional<std::tuple<Tensor, Tensor>> step_on_cpu(const Tensor& input, const Tensor& hx,
                                                      const OptionalTensor& cx, const Tensor& w_ih,
                                                      const Tensor& w_hh,
                                                      const OptionalTensor& b_ih,
                                                      const OptionalTensor& b_hh,
                                                      c10::string_view mode);

}  // namespace fusedrnn::ops

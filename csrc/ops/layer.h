// The operators as functions of named operands. Who implements them for a device, or for autograd,
// defines a function of this form and registers it by the adaptors of schema.h.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/params.h"
#include "ops/operands.h"

namespace fusedrnn::ops {

// Output, h_n, c_n, the reserve, and c of every step. A tensor [0] stands for what there is not.
using LayerResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// Output, h_n, c_n, and c of every step.
using StackResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using StepResult = std::tuple<Tensor, Tensor>;  // h, c

cpu::Team team();

// Called through the dispatcher, so that autograd, tracing and fake tensors see them.
LayerResult layer(const Operands& o);
std::vector<Tensor> layer_backward(const Operands& o, const Cotangents& c);
StackResult frozen_stack(const FrozenCall& call);
// The definition in plain torch, which is Python's (fusedrnn/reference.py).
StackResult layer_reference(const Operands& o);
std::vector<Tensor> layer_backward_reference(const Operands& o, const Cotangents& c);

// Compositions of layers, or torch.nn's own path (cudnn.h).
StackResult stack(const Stack& s);
StepResult cell(const Step& s);
// A stack by our layers, whatever torch.nn's path would cost.
StackResult stack_by_layers(const Stack& s);

// The gradients of layer_backward's results: `slopes` theirs, undefined where there is none;
// `tensors` grad_output, grad_h_n, grad_c_n, input, hx, cx, the weights, grad_states, reset_h and
// reset_c; `rows` batch_sizes, lengths and resets. Returns those that are wanted. Python sets it,
// because it differentiates the definition (fusedrnn/_ops/second.py).
using SecondBackward = std::function<std::vector<Tensor>(
    const std::vector<Tensor>& slopes, const std::vector<Tensor>& tensors,
    const std::vector<OptionalTensor>& rows, const std::string& mode, bool has_biases,
    const std::vector<bool>& needs, const std::vector<bool>& wanted)>;
SecondBackward& second_backward();

// A layer on a CPU. Weights may be stored in bfloat16, for plain tensors without gradients, which
// keeps_bfloat16 tells: the kernels read them as they are, which is half of the bytes, and compute
// in float32. Input and states are then float32 or bfloat16, and the results are what input is.
LayerResult layer_cpu(const Operands& o);
bool keeps_bfloat16(const Operands& o);

// A cell on a CPU, without a layer's views and results: LSTM B1 H128 takes 11.7 us so and 13.8 us
// by way of a layer. Only for plain tensors that fit, without gradients or autocast; returns
// nothing for any others.
std::optional<StepResult> step_on_cpu(const Step& s);

}  // namespace fusedrnn::ops

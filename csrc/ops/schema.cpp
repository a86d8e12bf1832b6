// The operators' schemas, and what they are composed of for every device alike.
#include "ops/schema.h"

#include <torch/library.h>

#include <string>

namespace fusedrnn::ops {

TORCH_LIBRARY(fusedrnn, m) {
  const std::string operands =
      "Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, Tensor[] weights";
  const std::string course =
      ", Tensor? lengths=None, Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None";
  m.def(("layer(" + operands + ", str mode, bool has_biases, bool train" + course +
         ", bool states=False, int every=0, bool bfloat16=False) -> "
         "(Tensor output, Tensor h_n, Tensor c_n, Tensor reserve, Tensor states)")
            .c_str());
  m.def(("layer_reference(" + operands + ", str mode, bool has_biases" + course +
         ") -> (Tensor output, Tensor h_n, Tensor c_n, Tensor states)")
            .c_str());
  for (const std::string name : {"layer_backward", "layer_backward_reference"}) {
    m.def((name + "(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, " + operands +
           ", Tensor output, Tensor reserve, str mode, bool has_biases, bool[] needs, "
           "Tensor? grad_states=None" +
           course + ", int every=0, bool bfloat16=False) -> Tensor[]")
              .c_str());
  }
  m.def(("stack(" + operands +
         ", str mode, bool has_biases, int num_layers, float dropout, bool train, "
         "bool bidirectional" +
         course +
         ", int states=0, int every=0) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor states)")
            .c_str(),
        stack_op<stack>);
  m.def(("frozen(Tensor input, Tensor? batch_sizes, Tensor? hx, Tensor? cx, int number" + course +
         ", int states=0) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor states)")
            .c_str());
  m.def(
      "cell(Tensor input, Tensor hx, Tensor? cx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, str mode) -> (Tensor h, Tensor c)",
      cell_op<cell>);
}

// torch.func, too, sees a stack or cell as what it is composed of, from the outermost transform on:
// layers, whose rules under vmap are Python's, and dropout, for which torch.func has its own.
TORCH_LIBRARY_IMPL(fusedrnn, FuncTorchDynamicLayerFrontMode, m) {
  m.impl("stack", stack_op<stack>);
  m.impl("cell", cell_op<cell>);
}

}  // namespace fusedrnn::ops

// One step of a cell. cuDNN has none, so it is ours wherever there is a kernel.
#include <ATen/autocast_mode.h>

#include "ops/cudnn.h"

namespace fusedrnn::ops {
namespace {

// A layer of one time step, whose rows are the batch.
StepResult step_by_layer(const Step& s) {
  const DirectionWeights& w = s.weights;
  std::vector<Tensor> weights{*w.w_ih, *w.w_hh};
  if (w.b_ih) weights.insert(weights.end(), {*w.b_ih, *w.b_hh});
  const Tensor input = s.input.unsqueeze(0);
  const OptionalTensor batch_sizes, hx = s.hx.unsqueeze(0),
                                    cx = s.cx ? OptionalTensor(s.cx->unsqueeze(0)) : std::nullopt;
  const WeightList list{weights, w.b_ih != nullptr, /*projected=*/false};
  auto [y, h_n, c_n, states] =
      stack_by_layers({{input, batch_sizes, hx, cx, list, s.cell, /*train=*/false}, 1, 1, 0.0});
  return {h_n.squeeze(0), spec(s.cell).has_c ? c_n.squeeze(0) : c_n};
}

}  // namespace

StepResult cell(const Step& s) {
  TORCH_CHECK((s.weights.b_ih == nullptr) == (s.weights.b_hh == nullptr),
              "fusedrnn: b_ih and b_hh must both be given, or neither");
  if (!has_kernels(s.input)) return cell_by_torch(s);
  if (!at::autocast::is_autocast_enabled(at::kCPU)) {
    if (auto result = step_on_cpu(s)) return *result;
  }
  return step_by_layer(s);
}

}  // namespace fusedrnn::ops

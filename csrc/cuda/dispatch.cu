// forward() and backward(): to the persistent kernels of the problem's family of cells.
#include "cuda/persistent/persistent.h"

namespace fusedrnn::cuda {

int forward(const Forward& params, const Plan& plan, void* stream) {
  return with_cell(params.problem.cell,
                   [&](auto cell) { return forward_of<spec(cell).family>(params, plan, stream); });
}

int backward(const Backward& params, const Plan& plan, void* stream) {
  return with_cell(params.problem.cell,
                   [&](auto cell) { return backward_of<spec(cell).family>(params, plan, stream); });
}

}  // namespace fusedrnn::cuda

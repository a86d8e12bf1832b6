// forward() and backward(): to the persistent kernels of the problem's cell.
#include "cuda/persistent/persistent.h"

namespace fusedrnn::cuda {

int forward(const Forward& params, const Plan& plan, void* stream) {
  switch (params.problem.cell) {
    case Cell::kLstm:
      return forward_lstm(params, plan, stream);
    case Cell::kGru:
      return forward_gru(params, plan, stream);
    default:
      return forward_rnn(params, plan, stream);
  }
}

int backward(const Backward& params, const Plan& plan, void* stream) {
  switch (params.problem.cell) {
    case Cell::kLstm:
      return backward_lstm(params, plan, stream);
    case Cell::kGru:
      return backward_gru(params, plan, stream);
    default:
      return backward_rnn(params, plan, stream);
  }
}

}  // namespace fusedrnn::cuda

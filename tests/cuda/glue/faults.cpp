// Kernels that fail on purpose. FUSEDRNN_HOST_FAULT is a list of KIND:TILE or KIND:TILE:PASS, as in
// "wrong:5 refuse:12:backward"; without a pass it holds for both. KIND is
//   wrong   one value of the results is off by a quarter
//   nan     one value is not a number
//   refuse  the launch is refused, as with an active-thread limit
//   trap    the device is lost, as an illegal access or a trap would have it
//   hang    never returns
//   crash   the process ends
// Takes the place of csrc/cuda/dispatch.cu, which it contains.
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cuda/persistent/persistent.h"

#define forward faultless_forward
#define backward faultless_backward
#include "cuda/dispatch.cu"
#undef forward
#undef backward

namespace fusedrnn::cuda {
namespace {

std::string fault_of(int tile, const char* pass) {
  const char* const faults = std::getenv("FUSEDRNN_HOST_FAULT");
  std::istringstream words(faults ? faults : "");
  const std::string number = std::to_string(tile);
  for (std::string word; words >> word;) {
    const size_t colon = word.find(':');
    const std::string which = word.substr(colon + 1);
    if (which == number || which == number + ":" + pass) return word.substr(0, colon);
  }
  return "";
}

// Runs `launch` with a fault; `*value` is one of its results, which may be off.
template <class Launch>
int faulty(const std::string& fault, void* value, const Launch& launch) {
  if (fault == "refuse") return 9;
  if (fault == "trap") throw std::runtime_error("CUDA error: unspecified launch failure");
  if (fault == "crash") std::abort();
  while (fault == "hang") pause();
  const int error = launch();
  if (fault == "wrong") *static_cast<float*>(value) += 0.25f;
  if (fault == "nan") *static_cast<float*>(value) = NAN;
  return error;
}

}  // namespace

int forward(const Forward& a, const Plan& plan, void* stream) {
  return faulty(fault_of(plan.tile, "forward"), a.direction[0].h_n,
                [&] { return faultless_forward(a, plan, stream); });
}

int backward(const Backward& a, const Plan& plan, void* stream) {
  return faulty(fault_of(plan.tile, "backward"), a.direction[0].dslots,
                [&] { return faultless_backward(a, plan, stream); });
}

}  // namespace fusedrnn::cuda

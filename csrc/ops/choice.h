// Which kernel a CUDA device runs a layer with, as far as that is no matter of the plan itself:
// what the user allows, what the device is like, whether torch's own layers are the better choice.
// Without torch's headers, so that it compiles in a second.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/params.h"

namespace fusedrnn::ops {

constexpr unsigned bit_of(cuda::Kernel kernel) { return 1u << int(kernel); }
constexpr unsigned kOwnKernels = ~bit_of(cuda::Kernel::kTorch);

const char* name_of(cuda::Kernel kernel);
// The kernel of that name; nothing where there is none.
std::optional<cuda::Kernel> kernel_named(const std::string& name);
const char* name_of(Cell cell);  // the operators' mode

// Persistent kernels, but of this row of csrc/cuda/tiles.h alone.
constexpr unsigned bits_of_tile(int tile) {
  return bit_of(cuda::Kernel::kBlock) | bit_of(cuda::Kernel::kCluster) |
         unsigned(tile + 1) << cuda::kTileShift;
}

// The kernels that plans may choose from: all, or the one FUSEDRNN_CUDA_KERNEL names, or the one
// cut as FUSEDRNN_CUDA_TILE, a row of csrc/cuda/tiles.h, counted from 0. Read anew on every call,
// so that one process can compare kernels. Throws c10::ValueError on a bad name or number.
unsigned cuda_allowed();

// While it lives, cuda_allowed() is this on its thread, whatever the environment says.
class Restriction {
 public:
  explicit Restriction(unsigned allowed);
  ~Restriction();
  Restriction(const Restriction&) = delete;
  Restriction& operator=(const Restriction&) = delete;

 private:
  unsigned before_;
};

using Rejections = std::vector<std::pair<std::string, std::string>>;  // candidate, reason

// The cheapest plan; throws c10::ValueError, with each candidate's reason, where none that is
// allowed can run the problem.
cuda::Plan cuda_plan(cuda::Pass pass, const Problem& problem, const cuda::Setting& setting,
                     const cuda::Device& device, const cuda::Experience& experience,
                     unsigned allowed, Rejections* rejections = nullptr);

// Whether torch.nn's path is allowed, takes the problem, and is cheaper than every kernel of ours,
// forward and, when training, backward together: who went forward has to go back. A way that was
// measured goes before one that is estimated; where ours yields, a plan that does not must be
// cheaper too. Half precision (`half`) it stores and multiplies; ours converts it, and is not
// compared.
bool torch_is_cheaper(const Problem& problem, const cuda::Setting& setting,
                      const cuda::Device& device, const cuda::Experience& experience,
                      unsigned allowed, bool half);

// What this process knows of a device beyond its limits: kept by number, for any thread. A plan
// made from it stays right while others add to it.
cuda::Experience experience_of(int device);
// What experience_of calls, once for each device, before it answers: set by Python, to read what
// `fusedrnn tune` has kept. No lock is held meanwhile.
std::function<void(int device)>& experience_loader();
// Takes a tile out of every later plan for this pass and device.
void exclude(int device, cuda::Pass pass, int tile);
// Replaces what was measured; kept for good, because plans under way may read the last.
void set_measured(int device, std::vector<cuda::Measured> measured);

// "LSTM forward: block kernel 5, H=100 padded to 128, ...", for messages.
std::string describe(cuda::Pass pass, const Problem& problem, const cuda::Plan& plan);

// Elements of the reserve for each of the N rows: slots, c and, projected, h before the projection.
int64_t cuda_reserve_width(const Problem& problem);

#ifdef FUSEDRNN_WITH_CUDA
// Asked once for each device. Throws where there is no such device.
const cuda::Device& cuda_device(int index);
#endif

}  // namespace fusedrnn::ops

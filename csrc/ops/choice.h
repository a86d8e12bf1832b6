// How a layer or a stack runs on a CUDA device: what the plan (cuda/plan.h) cannot know by itself.
// What the user allows, what this process has learnt of its devices, and the choices made so far.
// Without torch's big headers, so that it compiles in a second.
#pragma once

#include <functional>
#include <vector>

#include "cuda/plan.h"

namespace fusedrnn::ops {

// What plans may choose from: all kernels, or the one FUSEDRNN_CUDA_KERNEL names, or the row of
// csrc/cuda/tiles.h that FUSEDRNN_CUDA_TILE numbers from 0. Read anew on every call, so that one
// process can compare kernels. Throws c10::ValueError on a bad name or number.
Restriction cuda_restriction();

// While it lives, cuda_restriction() is this on its thread, whatever the environment says.
class Restricted {
 public:
  explicit Restricted(const Restriction& restriction);
  ~Restricted();
  Restricted(const Restricted&) = delete;
  Restricted& operator=(const Restricted&) = delete;

 private:
  std::optional<Restriction> before_;
};

// cuda::plan(), which throws c10::ValueError, with each candidate's reason, where no kernel within
// the restriction can run the problem.
cuda::Plan cuda_plan(cuda::Pass pass, const Problem& problem, const cuda::Setting& setting,
                     const cuda::Device& device, const cuda::Experience& experience,
                     const Restriction& restriction, Reasons* reasons = nullptr);

// A device of this process.
struct NumberedDevice {
  int index;
  const cuda::Device& limits;
};

// cuda::choose() by what is known of the device. The last choices are remembered, so that a call
// makes one plan for a layer and pass: a stack chooses for both passes of its layers, which lie
// behind torch's dispatcher and ask again; so does the backward pass, on a thread of autograd's.
cuda::Choice choice_of(const Problem& problem, const cuda::Setting& setting,
                       const NumberedDevice& device, const Restriction& restriction);
// One pass of it; throws as cuda_plan() does.
cuda::Plan plan_of(cuda::Pass pass, const Problem& problem, const cuda::Setting& setting,
                   const NumberedDevice& device, const Restriction& restriction);
// Plans that choice_of() has made since the process began, one for each pass of a problem.
int64_t plans_made();

// What this process has learnt of a device: kept by number, for any thread. A plan made from it
// stays right while others add to it.
cuda::Experience experience_of(int device);
// Called by experience_of, once for each device, before it answers: set by Python, to read what
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

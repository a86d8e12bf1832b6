// See choice.h.
#include "ops/choice.h"

#include <c10/util/Exception.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

namespace fusedrnn::ops {
namespace {

constexpr cuda::Kernel kKernels[] = {cuda::Kernel::kBlock, cuda::Kernel::kCluster,
                                     cuda::Kernel::kStepwise, cuda::Kernel::kTorch};

thread_local unsigned restriction = 0;  // none

const char* name_of(cuda::Pass pass) {
  return pass == cuda::Pass::kForward ? "forward" : "backward";
}

}  // namespace

const char* name_of(cuda::Kernel kernel) {
  constexpr const char* kNames[] = {"block", "cluster", "stepwise", "torch"};
  return kNames[int(kernel)];
}

std::optional<cuda::Kernel> kernel_named(const std::string& name) {
  for (const cuda::Kernel kernel : kKernels) {
    if (name == name_of(kernel)) return kernel;
  }
  return std::nullopt;
}

const char* name_of(Cell cell) {
  constexpr const char* kNames[] = {"RNN_TANH", "RNN_RELU", "LSTM", "GRU"};
  return kNames[int(cell)];
}

Restriction::Restriction(unsigned allowed) : before_(restriction) { restriction = allowed; }
Restriction::~Restriction() { restriction = before_; }

unsigned cuda_allowed() {
  if (restriction) return restriction;
  if (const char* tile = std::getenv("FUSEDRNN_CUDA_TILE"); tile && *tile) {
    char* end = nullptr;
    const long index = std::strtol(tile, &end, 10);
    TORCH_CHECK_VALUE(!*end && index >= 0 && index < 1000,
                      "fusedrnn: FUSEDRNN_CUDA_TILE must be a row of csrc/cuda/tiles.h, got ",
                      tile);
    return bits_of_tile(int(index));
  }
  const char* wanted = std::getenv("FUSEDRNN_CUDA_KERNEL");
  if (!wanted || !*wanted) return cuda::kAnyKernel;
  if (const auto kernel = kernel_named(wanted)) return bit_of(*kernel);
  TORCH_CHECK_VALUE(false, "fusedrnn: FUSEDRNN_CUDA_KERNEL must be block, cluster, stepwise or ",
                    "torch, got ", wanted);
}

cuda::Plan cuda_plan(cuda::Pass pass, const Problem& p, const cuda::Setting& setting,
                     const cuda::Device& device, const cuda::Experience& experience,
                     unsigned allowed, Rejections* rejections) {
  const cuda::Rejected note = [](void* context, const char* candidate, const char* reason) {
    static_cast<Rejections*>(context)->emplace_back(candidate, reason);
  };
  const auto plan = [&](Rejections* noted) {
    return cuda::plan(pass, p, setting, device, experience, allowed, noted ? note : nullptr, noted);
  };
  const cuda::Plan found = plan(rejections);
  if (allowed & bit_of(found.kernel)) return found;
  Rejections noted;
  plan(&noted);
  std::string reasons;
  for (const auto& [candidate, reason] : noted) reasons += "\n  " + candidate + ": " + reason;
  std::string names;
  for (const cuda::Kernel kernel : kKernels) {
    if (allowed & bit_of(kernel))
      names += (names.empty() ? "" : ", ") + std::string(name_of(kernel));
  }
  TORCH_CHECK_VALUE(false, "fusedrnn: of the CUDA kernels allowed (",
                    names.empty() ? "none" : names, ", see FUSEDRNN_CUDA_KERNEL) none can run ",
                    name_of(p.cell), " ", name_of(pass), " with T=", p.T, ", B=", p.B, ", H=", p.H,
                    reasons);
}

bool torch_is_cheaper(const Problem& p, const cuda::Setting& setting, const cuda::Device& device,
                      const cuda::Experience& experience, unsigned allowed, bool half) {
  constexpr unsigned kTorch = bit_of(cuda::Kernel::kTorch);
  if (!(allowed & kTorch) || allowed == kTorch) return allowed == kTorch;
  if (!cuda::torch_takes(p) || half) return cuda::torch_takes(p);
  struct Way {
    double us = 0;
    bool measured = true, yields = false;

    void add(const cuda::Plan& plan) {
      us += plan.step_us;
      measured = measured && plan.measured;
      yields = yields || (plan.yields && !plan.measured);
    }
  };
  const auto way = [&](unsigned kernels) {
    Way both;
    for (const cuda::Pass pass : {cuda::Pass::kForward, cuda::Pass::kBackward}) {
      if (pass == cuda::Pass::kBackward && !p.training) continue;
      both.add(cuda_plan(pass, p, setting, device, experience, kernels));
    }
    return both;
  };
  constexpr unsigned kTrusted = cuda::kNoneYields | bit_of(cuda::Kernel::kStepwise);
  const Way ours = way(allowed & ~kTorch), theirs = way(kTorch);
  if (ours.measured != theirs.measured) return theirs.measured;
  if (theirs.us < ours.us || !ours.yields) return theirs.us < ours.us;
  return theirs.us < way((allowed & ~kTorch) | kTrusted).us;
}

namespace {

std::mutex& experience_mutex() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}
std::map<int, cuda::Experience>& experiences() {
  static auto* const all = new std::map<int, cuda::Experience>;
  return *all;
}

}  // namespace

std::function<void(int)>& experience_loader() {
  static auto* const loader = new std::function<void(int)>;  // outlives the interpreter
  return *loader;
}

cuda::Experience experience_of(int device) {
  static auto* const asked = new std::set<int>;
  std::unique_lock<std::mutex> first(experience_mutex());
  const bool unknown = asked->insert(device).second;
  first.unlock();
  if (unknown && experience_loader()) experience_loader()(device);
  const std::lock_guard<std::mutex> lock(experience_mutex());
  return experiences()[device];
}

void exclude(int device, cuda::Pass pass, int tile) {
  const std::lock_guard<std::mutex> lock(experience_mutex());
  experiences()[device].excluded[int(pass)] |= uint64_t(1) << tile;
}

void set_measured(int device, std::vector<cuda::Measured> measured) {
  const auto* const kept = new std::vector<cuda::Measured>(std::move(measured));
  const std::lock_guard<std::mutex> lock(experience_mutex());
  experiences()[device].measured = kept->data();
  experiences()[device].count = int64_t(kept->size());
}

std::string describe(cuda::Pass pass, const Problem& p, const cuda::Plan& plan) {
  std::string text = std::string(name_of(p.cell)) + " " + name_of(pass) + ": ";
  text += std::string(name_of(plan.kernel)) + " kernel, T=" + std::to_string(p.T) +
          ", B=" + std::to_string(p.B) + ", H=" + std::to_string(p.H);
  if (plan.tile < 0) return text;
  return text + " padded to " + std::to_string(plan.hidden) + ", tile " +
         std::to_string(plan.tile) + ", " + std::to_string(plan.rows) + " rows for " +
         std::to_string(plan.cluster) + " blocks, " + std::to_string(plan.blocks) +
         " blocks a direction, " + std::to_string(plan.threads) + " threads and " +
         std::to_string(plan.shared_bytes) + " bytes of shared memory each";
}

int64_t cuda_reserve_width(const Problem& p) {
  const bool lstm = p.cell == Cell::kLstm, elman = gates_of(p.cell) == 1;
  if (!p.training || elman) return 0;
  return (cuda::slots_of(p.cell, true) + (lstm ? 1 : 0) + (p.projected ? 1 : 0)) * p.H;
}

#ifdef FUSEDRNN_WITH_CUDA
const cuda::Device& cuda_device(int index) {
  static std::mutex mutex;
  static std::map<int, cuda::Device> devices;  // its nodes stay where they are
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = devices.find(index);
  if (known != devices.end()) return known->second;
  int error = 0;
  const cuda::Device device = cuda::device(index, &error);
  TORCH_CHECK(error == 0, "fusedrnn: CUDA device ", index,
              " cannot be asked what it is: ", cuda::error_string(error));
  return devices.emplace(index, device).first->second;
}
#endif

}  // namespace fusedrnn::ops

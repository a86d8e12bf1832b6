// See trust.h.
#include "ops/cuda/trust.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sub.h>
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>

namespace fusedrnn::ops {
namespace {

// Largest difference by largest value. TF32 products, the least exact that either side may use,
// come to about 2e-3 over the trial's steps; a lost row, gate, block or step to 0.1 or more.
constexpr double kBound = 2e-2;
constexpr int64_t kSteps = 4, kInputs = 8;

using Kernel = std::pair<cuda::Pass, int>;  // and its tile

struct Device {
  std::mutex trial;       // held while a kernel is; what follows is under table_mutex()
  uint64_t checked[2]{};  // by pass, a bit for each tile
  std::map<Kernel, std::string> failures;  // with the reason; not yet told to the user
};

std::mutex& table_mutex() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}
Device& device_of(const Scope& scope) {
  static auto* const devices = new std::map<int, Device>;  // its nodes stay where they are
  const std::lock_guard<std::mutex> lock(table_mutex());
  return (*devices)[scope.device()];
}

uint64_t mask_of(const Kernel& kernel) { return uint64_t(1) << kernel.second; }

bool is_checked(const Device& device, const Kernel& kernel) {
  const std::lock_guard<std::mutex> lock(table_mutex());
  return device.checked[int(kernel.first)] & mask_of(kernel);
}

bool is_excluded(const Scope& scope, const Kernel& kernel) {
  return experience_of(scope.device()).excluded[int(kernel.first)] & mask_of(kernel);
}

// Measured by `fusedrnn tune`, which compares with float64 first.
bool is_measured(const Scope& scope, const Kernel& kernel) {
  const cuda::Experience known = experience_of(scope.device());
  for (int64_t i = 0; i < known.count; ++i) {
    const cuda::Measured& m = known.measured[i];
    if (m.pass == kernel.first && m.tile == kernel.second) return true;
  }
  return false;
}

// While it lives, plans of its thread are the trial's own, and taken as they are.
class OnTrial {
 public:
  OnTrial() { is_ = true; }
  ~OnTrial() { is_ = false; }
  static bool is() { return is_; }

 private:
  static inline thread_local bool is_ = false;
};

bool is_forced() { return cuda_restriction().tile >= 0; }

bool is_switched_off() {
  const char* const wish = std::getenv("FUSEDRNN_CUDA_CHECK");
  if (!wish || !*wish) return false;
  const std::string said(wish);
  TORCH_CHECK_VALUE(said == "0" || said == "1",
                    "fusedrnn: FUSEDRNN_CUDA_CHECK must be 0 or 1, got ", said);
  return said == "0";
}

bool is_captured(const Scope& scope) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamIsCapturing(scope.current().stream(), &status));
  return status != cudaStreamCaptureStatusNone;
}

// Whether a launch's error says that this kernel cannot be started here, and nothing of the
// device's state: with less shared memory, threads or multiprocessors than it was asked for.
bool is_refusal(int error) {
  switch (static_cast<cudaError_t>(error)) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorInvalidClusterSize:
    case cudaErrorNotPermitted:
    case cudaErrorNotSupported:
      return true;
    default:
      return false;
  }
}

std::string title_of(const Kernel& kernel, Cell cell, const cuda::Plan& plan) {
  const bool forward = kernel.first == cuda::Pass::kForward;
  std::string name = std::string(cuda::name_of(plan.kernel)) + " kernel";
  if (plan.tile < 0) return "the " + name;
  return "the " + name + " " + std::to_string(plan.tile) + " (" + spec(cell).name +
         (forward ? " forward" : " backward") + ", H <= " + std::to_string(plan.hidden) + ", " +
         std::to_string(plan.cluster) + " blocks for " + std::to_string(plan.rows) + " rows)";
}

void fail(Device& device, const Kernel& kernel, const Scope& scope, std::string what) {
  exclude(scope.device(), kernel.first, kernel.second);
  const std::lock_guard<std::mutex> lock(table_mutex());
  device.failures[kernel] = std::move(what);
}

// Warns of what failed since the last time. No lock is held meanwhile: to warn may take the GIL.
// `plan`, if there is one, serves instead.
void tell(Device& device, const Scope& scope, cuda::Pass pass, Cell cell, const cuda::Plan* plan) {
  std::map<Kernel, std::string> failures;
  {
    const std::lock_guard<std::mutex> lock(table_mutex());
    failures.swap(device.failures);
  }
  for (const auto& [kernel, what] : failures) {
    TORCH_WARN("fusedrnn: on cuda:", scope.device(), " ", what,
               ". It is used no more in this process; ",
               plan ? title_of({pass, plan->tile}, cell, *plan) + " serves instead"
                    : "no other is allowed");
  }
}

// Numbers in [-size, size), the same each time, from no generator of torch's.
class Numbers {
 public:
  explicit Numbers(const Tensor& like) : options_(like.options()) {}

  Tensor of(at::IntArrayRef shape, double size) {
    const Tensor host = at::empty(shape, options_.device(at::kCPU));
    float* const to = host.mutable_data_ptr<float>();
    for (int64_t i = 0; i < host.numel(); ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      to[i] = float(size * (double(state_ >> 33) / double(1 << 30) - 1));
    }
    return host.to(options_.device());
  }

 private:
  at::TensorOptions options_;
  uint64_t state_ = 1;
};

// A small problem that fills a tile's rows more than once and leaves some of its units empty.
class Trial {
 public:
  Trial(const Tensor& like, Cell cell, const cuda::Plan& plan) : cell_(cell) {
    Numbers numbers(like);
    const int64_t B = plan.rows + 1, H = plan.hidden - 3, G = gates_of(cell);
    const double size = 1 / std::sqrt(double(H));
    x_ = numbers.of({kSteps, B, kInputs}, 1);
    for (OptionalTensor* state : {&h0_, &c0_, &dh_n_, &dc_n_}) *state = numbers.of({1, B, H}, 1);
    if (!spec(cell).has_c) c0_ = dc_n_ = std::nullopt;
    dy_ = numbers.of({kSteps, B, H}, 1);
    weights_ = {numbers.of({G * H, kInputs}, size), numbers.of({G * H, H}, size),
                numbers.of({G * H}, size), numbers.of({G * H}, size)};
  }

  // Output, h_n, c_n and reserve.
  std::vector<Tensor> forward() const {
    auto [y, h_n, c_n, reserve, states] = layer(operands());
    return {y, h_n, c_n, reserve};
  }
  std::vector<Tensor> backward(const std::vector<Tensor>& after) const {
    c10::List<bool> needs;
    for (size_t i = 0; i < 3 + weights_.size(); ++i) needs.push_back(i != 2 || c0_);
    return layer_backward(operands(), {dy_, dh_n_, dc_n_, after[0], after[3], needs});
  }

 private:
  Operands operands() const {
    return {x_, not_packed_, h0_, c0_, weights_of_layer(cell_, true, weights_), cell_, true};
  }

  Cell cell_;
  Tensor x_;
  OptionalTensor not_packed_, h0_, c0_, dy_, dh_n_, dc_n_;
  std::vector<Tensor> weights_;
};

// The largest, of all tensors, relative to the largest value; nan as soon as one is not finite.
double difference(const std::vector<Tensor>& found, const std::vector<Tensor>& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i].numel() == 0) continue;
    const Tensor apart = at::sub(found[i], expected[i]).abs().max();
    const double relative = apart.item<double>() / expected[i].abs().max().item<double>();
    if (!std::isfinite(relative)) return relative;
    worst = std::max(worst, relative);
  }
  return worst;
}

// What is wrong with a kernel, in words; empty: nothing.
std::string verdict(const Kernel& kernel, const Problem& p, const cuda::Plan& plan,
                    const Scope& scope, const Tensor& like) {
  const OnTrial on_trial;
  const Trial trial(like, p.cell, plan);
  std::vector<Tensor> after, expected;
  const bool forward = kernel.first == cuda::Pass::kForward;
  {
    const Restricted restricted(Restriction::to_stepwise());
    after = trial.forward();
    expected = forward ? after : trial.backward(after);
  }
  // Whatever went wrong before on this stream is raised here, and not taken for this kernel's.
  (void)expected[0].abs().max().item<double>();
  const std::string name = title_of(kernel, p.cell, plan);
  try {
    const Restricted restricted(Restriction::to_tile(plan.tile));
    const double apart = difference(forward ? trial.forward() : trial.backward(after), expected);
    if (apart <= kBound) return {};
    return name + " computes something else than the stepwise path: on a small problem " +
           (std::isfinite(apart) ? c10::str("they are ", apart, " of the largest value apart")
                                 : "its results are not finite");
  } catch (const NotStarted& error) {
    return name + " did not start: " + error.reason;
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::ValueError&) {  // what the user set, in the environment
    throw;
  } catch (const std::exception& error) {
    if (is_excluded(scope, kernel)) return {};  // meanwhile, by another thread's launch
    const std::string said = error.what(), first_line = said.substr(0, said.find('\n'));
    TORCH_CHECK(false, "fusedrnn: ", name, " failed on cuda:", scope.device(),
                " when it was checked at its first use: ", first_line,
                "\nThis process can use the GPU no more. `python -m fusedrnn tune` tries every "
                "kernel in a process of its own and takes out for good those that fail; "
                "FUSEDRNN_CUDA_KERNEL=stepwise does without all of them.");
  }
}

// Whether the plan's kernel may be used; if not, the next plan names another.
bool passes(Device& device, cuda::Pass pass, const Problem& p, const cuda::Plan& plan,
            const Scope& scope, const Tensor& like) {
  const Kernel kernel(pass, plan.tile);
  if (plan.tile < 0 || is_forced() || is_switched_off() || is_checked(device, kernel)) return true;
  if (is_captured(scope)) return true;
  const std::lock_guard<std::mutex> one_at_a_time(device.trial);
  if (is_excluded(scope, kernel)) return false;
  if (is_checked(device, kernel)) return true;
  std::string wrong;
  try {
    if (!is_measured(scope, kernel)) wrong = verdict(kernel, p, plan, scope, like);
  } catch (const c10::OutOfMemoryError&) {
    return true;  // to be checked when there is room
  }
  if (!wrong.empty()) fail(device, kernel, scope, wrong);
  if (is_excluded(scope, kernel)) return false;
  const std::lock_guard<std::mutex> lock(table_mutex());
  device.checked[int(pass)] |= mask_of(kernel);
  return true;
}

}  // namespace

cuda::Plan trusted(cuda::Pass pass, const Call& call, const Scope& scope,
                   const std::function<cuda::Plan()>& propose) {
  if (OnTrial::is()) return propose();
  Device& device = device_of(scope);
  try {
    cuda::Plan plan = propose();
    while (!passes(device, pass, call.problem, plan, scope, call.input)) plan = propose();
    tell(device, scope, pass, call.problem.cell, &plan);
    return plan;
  } catch (...) {
    tell(device, scope, pass, call.problem.cell, nullptr);
    throw;
  }
}

void take_out(int error, cuda::Pass pass, const Problem& p, const cuda::Plan& plan,
              const Scope& scope) {
  if (plan.tile < 0 || is_forced() || !is_refusal(error)) {
    check_started(error, pass, p, plan);
  }
  const Kernel kernel(pass, plan.tile);
  fail(device_of(scope), kernel, scope,
       title_of(kernel, p.cell, plan) + " did not start: " + cuda::error_string(error));
}

}  // namespace fusedrnn::ops

// See choice.h.
#include "ops/choice.h"

#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

#ifdef FUSEDRNN_WITH_CUDA
#include "cuda/params.h"
#endif

namespace fusedrnn::ops {
namespace {

thread_local std::optional<Restriction> restricted;

const char* name_of(cuda::Pass pass) {
  return pass == cuda::Pass::kForward ? "forward" : "backward";
}

// Where a restriction says whether a kernel is allowed.
struct Allowed {
  cuda::Kernel kernel;
  bool Restriction::* is;
};
constexpr Allowed kAllowed[] = {{cuda::Kernel::kBlock, &Restriction::block},
                                {cuda::Kernel::kCluster, &Restriction::cluster},
                                {cuda::Kernel::kStepwise, &Restriction::stepwise},
                                {cuda::Kernel::kTorch, &Restriction::torch}};

Restriction to_kernel(cuda::Kernel kernel) {
  Restriction only{};
  for (const Allowed& allowed : kAllowed) only.*allowed.is = allowed.kernel == kernel;
  return only;
}

std::string names_in(const Restriction& restriction) {
  std::string names;
  for (const Allowed& allowed : kAllowed) {
    if (!(restriction.*allowed.is)) continue;
    names += (names.empty() ? "" : ", ") + std::string(cuda::name_of(allowed.kernel));
  }
  return names.empty() ? "none" : names;
}

}  // namespace

Restricted::Restricted(const Restriction& restriction) : before_(restricted) {
  restricted = restriction;
}
Restricted::~Restricted() { restricted = before_; }

Restriction cuda_restriction() {
  if (restricted) return *restricted;
  if (const char* tile = std::getenv("FUSEDRNN_CUDA_TILE"); tile && *tile) {
    char* end = nullptr;
    const long index = std::strtol(tile, &end, 10);
    TORCH_CHECK_VALUE(!*end && index >= 0 && index < 1000,
                      "fusedrnn: FUSEDRNN_CUDA_TILE must be a row of csrc/cuda/tiles.h, got ",
                      tile);
    return Restriction::to_tile(int(index));
  }
  const char* wanted = std::getenv("FUSEDRNN_CUDA_KERNEL");
  if (!wanted || !*wanted) return {};
  if (const auto kernel = cuda::kernel_named(wanted)) return to_kernel(*kernel);
  TORCH_CHECK_VALUE(false, "fusedrnn: FUSEDRNN_CUDA_KERNEL must be block, cluster, stepwise or ",
                    "torch, got ", wanted);
}

cuda::Plan cuda_plan(cuda::Pass pass, const Problem& p, const cuda::Setting& setting,
                     const cuda::Device& device, const cuda::Experience& experience,
                     const Restriction& restriction, Reasons* reasons) {
  Reasons own;
  Reasons& told = reasons ? *reasons : own;
  if (auto plan = cuda::plan(pass, p, setting, device, experience, restriction, &told))
    return *plan;
  std::string why;
  for (const auto& [candidate, reason] : told.rejected) why += "\n  " + candidate + ": " + reason;
  TORCH_CHECK_VALUE(false, "fusedrnn: of the CUDA kernels allowed (", names_in(restriction),
                    ", see FUSEDRNN_CUDA_KERNEL) none can run ", spec(p.cell).name, " ",
                    name_of(pass), " with T=", p.T, ", B=", p.B, ", H=", p.H, why);
}

namespace {

// What a choice depends on, the device's limits by its number.
struct Asked {
  Problem problem;
  cuda::Setting setting;
  int device;
  Restriction restriction;
  uint64_t version;  // of what is known of the device

  friend bool operator==(const Asked& a, const Asked& b) {
    const Problem &p = a.problem, &q = b.problem;
    const cuda::Setting &s = a.setting, &t = b.setting;
    // Neither the direction nor the lengths of single rows matter to a plan.
    return p.cell == q.cell && p.dtypes.stored == q.dtypes.stored &&
           p.dtypes.computed == q.dtypes.computed && p.dtypes.state == q.dtypes.state &&
           p.T == q.T && p.B == q.B && p.I == q.I && p.H == q.H && p.P == q.P &&
           p.projected == q.projected && p.training == q.training && p.packed == q.packed &&
           s.directions == t.directions && s.L == t.L && s.tf32 == t.tf32 && s.top_I == t.top_I &&
           !s.half == !t.half && !s.no_torch == !t.no_torch && a.device == b.device &&
           a.restriction == b.restriction && a.version == b.version;
  }
};

// The last choices. Of the process rather than of a thread, because autograd goes back on one of
// its own; to look one up takes less than to make a plan by far, even with the lock.
class Remembered {
 public:
  std::optional<cuda::Choice> find(const Asked& asked) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [question, choice] : kept_) {
      if (question == asked) return choice;
    }
    return std::nullopt;
  }
  void keep(const Asked& asked, const cuda::Choice& choice) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_[next_++ % kept_.size()] = {asked, choice};
  }

 private:
  std::mutex mutex_;
  std::array<std::pair<Asked, cuda::Choice>, 32> kept_{};  // empty ones have T = 0, as no call has
  size_t next_ = 0;
};

Remembered& remembered() {
  static auto* const all = new Remembered;
  return *all;
}

std::atomic<int64_t> plans{0};

}  // namespace

int64_t plans_made() { return plans; }

cuda::Choice choice_of(const Problem& problem, const cuda::Setting& setting,
                       const NumberedDevice& device, const Restriction& restriction) {
  const cuda::Experience known = experience_of(device.index);
  Asked asked{problem, setting, device.index, restriction, known.version};
  asked.problem.offsets = nullptr;  // the caller's
  if (const auto choice = remembered().find(asked)) return *choice;
  const cuda::Choice choice = cuda::choose(problem, setting, device.limits, known, restriction);
  plans += problem.training ? 2 : 1;
  remembered().keep(asked, choice);
  if (restriction.torch && !choice.by_torch) {
    // What the stack's layers will ask, each for itself.
    asked.setting = {setting.directions, 1, setting.tf32};
    asked.restriction = restriction.without_torch();
    remembered().keep(asked, choice);
  }
  return choice;
}

cuda::Plan plan_of(cuda::Pass pass, const Problem& problem, const cuda::Setting& setting,
                   const NumberedDevice& device, const Restriction& restriction) {
  const cuda::Choice choice = choice_of(problem, setting, device, restriction);
  if (const auto& plan = choice.pass[int(pass)]) return *plan;
  return cuda_plan(pass, problem, setting, device.limits, experience_of(device.index), restriction);
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
  cuda::Experience& known = experiences()[device];
  known.excluded[int(pass)] |= uint64_t(1) << tile;
  ++known.version;
}

void set_measured(int device, std::vector<cuda::Measured> measured) {
  const auto* const kept = new std::vector<cuda::Measured>(std::move(measured));
  const std::lock_guard<std::mutex> lock(experience_mutex());
  cuda::Experience& known = experiences()[device];
  known.measured = kept->data();
  known.count = int64_t(kept->size());
  ++known.version;
}

std::string describe(cuda::Pass pass, const Problem& p, const cuda::Plan& plan) {
  std::string text = std::string(spec(p.cell).name) + " " + name_of(pass) + ": ";
  text += std::string(cuda::name_of(plan.kernel)) + " kernel, T=" + std::to_string(p.T) +
          ", B=" + std::to_string(p.B) + ", H=" + std::to_string(p.H);
  if (plan.tile < 0) return text;
  return text + " padded to " + std::to_string(plan.hidden) + ", tile " +
         std::to_string(plan.tile) + ", " + std::to_string(plan.rows) + " rows for " +
         std::to_string(plan.cluster) + " blocks, " + std::to_string(plan.blocks) +
         " blocks a direction, " + std::to_string(plan.threads) + " threads and " +
         std::to_string(plan.shared_bytes) + " bytes of shared memory each";
}

int64_t cuda_reserve_width(const Problem& p) {
  const CellSpec& cell = spec(p.cell);
  if (!p.training || !cell.keeps_slots) return 0;
  if (p.keeps_some()) return cell.has_c ? p.H : 0;
  return (cell.slots + (cell.has_c ? 1 : 0) + (p.projected ? 1 : 0)) * p.H;
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

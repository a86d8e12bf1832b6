// See kernels.h.
#include "cuda/kernels.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace fusedrnn::cuda {

std::string text(const char* format, ...) {
  char made[160];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(made, sizeof(made), format, arguments);
  va_end(arguments);
  return made;
}

namespace {

constexpr double kMostRows = 2147483647;  // persistent kernels count rows of x and y in 32 bits

// True. Every call of a layer asks, few want to know why: text is made for those.
template <class... Args>
bool refuse(std::string* why, const char* format, Args... args) {
  if (why) *why = text(format, args...);
  return true;
}

Plan plan_of(const Question& q, Kernel kernel, int tile) {
  Plan plan{};
  plan.kernel = kernel;
  plan.tile = tile;
  plan.hidden = int(q.problem.H);
  plan.cluster = 1;
  plan.step_us = plan.recurrence_us = -1;
  return plan;
}

void set_step(Plan& plan, double us) { plan.step_us = plan.recurrence_us = us; }

// "LSTM", "GRU"; both of torch.nn.RNN's are "RNN".
std::string class_of(Cell cell) {
  const char* const name = spec(cell).name;
  return std::string(name, std::strcspn(name, "_"));
}

int most_hidden(Cell family) {
  int most = 0;
  for (const Tile& tile : kTiles) {
    if (tile.cell == family) most = std::max(most, tile.hidden);
  }
  return most;
}

// Why no row of the table is made for the problem.
bool none_is_made(const Question& q, std::string* why) {
  const Problem& p = q.problem;
  if (p.projected)
    return refuse(why, "h is not projected in it, P = %lld", static_cast<long long>(p.P));
  if (p.dtypes.computed != DType::kFloat32)
    return refuse(why, "computes in float32, the input is float64");
  return refuse(why, "made for H <= %d, not %lld", most_hidden(spec(p.cell).family),
                static_cast<long long>(p.H));
}

// Block and cluster.

bool persistent_refuses(const Question& q, const Plan& plan, std::string* why) {
  if (plan.tile == kNoTile) return none_is_made(q, why);
  const Device& device = q.device;
  const int major = device.sm / 10, minor = device.sm % 10;
  const double rows = double(q.problem.T) * double(q.problem.B);
  if (rows >= kMostRows) return refuse(why, "counts rows in 32 bits, T*B = %.3g", rows);
  if (q.experience.excluded[int(q.pass)] >> plan.tile & 1)
    return refuse(why, "was taken out: it failed on this device");
  if (device.sm < 75)
    return refuse(why, "needs compute capability 7.5, the device has %d.%d", major, minor);
  if (plan.kernel == Kernel::kCluster) {
    // 12.x has clusters too, but not the shared memory that these kernels were cut up for.
    if (device.sm < 90 || device.sm >= 120)
      return refuse(why,
                    "needs the clusters of compute capability 9.0 or 10.0, the device has %d.%d",
                    major, minor);
    if (q.cost.places(plan.cluster) == 0)
      return refuse(why, "the device runs no cluster of %d blocks", plan.cluster);
  }
  return plan.shared_bytes > device.shared_bytes &&
         refuse(why, "needs %.1f KiB of shared memory a block, the device has %.1f",
                double(plan.shared_bytes) / 1024, double(device.shared_bytes) / 1024);
}

Plan configure_persistent(const Question& q, int index) {
  if (index == kNoTile) return plan_of(q, Kernel::kBlock, kNoTile);
  const Tile& tile = kTiles[index];
  const Shape shape = q.pass == Pass::kForward ? forward_shape(tile) : backward_shape(tile);
  Plan plan = plan_of(q, tile.cluster > 1 ? Kernel::kCluster : Kernel::kBlock, index);
  plan.hidden = tile.hidden;
  plan.cluster = tile.cluster;
  plan.rows = tile.rows;
  plan.threads = shape.threads;
  plan.registers = shape.registers();
  plan.shared_bytes = shape.shared_bytes;
  plan.blocks = (q.problem.B + tile.rows - 1) / tile.rows * tile.cluster;
  return plan;
}

void estimate_persistent(const Question& q, Plan& plan) { q.cost.persistent(plan); }

// Stepwise.

bool stepwise_refuses(const Question&, const Plan&, std::string*) { return false; }

Plan configure_stepwise(const Question& q, int tile) { return plan_of(q, Kernel::kStepwise, tile); }

void estimate_stepwise(const Question& q, Plan& plan) { set_step(plan, q.cost.stepwise()); }

// torch.nn's path.

bool torch_refuses(const Question& q, const Plan&, std::string* why) {
  const Problem& p = q.problem;
  if (spec(p.cell).torch == TorchLayer::kNone) return refuse(why, "torch.nn has no such layer");
  if (torch_takes(p)) return false;
  return p.dtypes.computed == DType::kFloat64
             ? refuse(why, "cannot be differentiated twice, as float64 is")
             : refuse(why, "takes at most 65535 steps and rows");
}

Plan configure_torch(const Question& q, int tile) { return plan_of(q, Kernel::kTorch, tile); }

void estimate_torch(const Question& q, Plan& plan) { set_step(plan, q.cost.torch()); }

constexpr KernelAnswers kKernels[] = {
    {"block", "W_hh stays in each block for the whole sequence, and blocks wait for nobody",
     persistent_refuses, configure_persistent, estimate_persistent},
    {"cluster",
     "W_hh stays on chip, split over the blocks of a cluster, which exchange h each step",
     persistent_refuses, configure_persistent, estimate_persistent},
    {"stepwise", "a matrix product and an element-wise kernel a step", stepwise_refuses,
     configure_stepwise, estimate_stepwise},
    {"torch", "torch.nn's own path, cuDNN", torch_refuses, configure_torch, estimate_torch},
};

}  // namespace

const KernelAnswers& answers_of(Kernel kernel) { return kKernels[int(kernel)]; }

const char* name_of(Kernel kernel) { return answers_of(kernel).name; }

std::optional<Kernel> kernel_named(const std::string& name) {
  for (const KernelAnswers& answers : kKernels) {
    if (name == answers.name) return Kernel(&answers - kKernels);
  }
  return std::nullopt;
}

std::string title_of(const Question& q, const Plan& plan) {
  if (plan.kernel == Kernel::kTorch) return "cuDNN";
  if (plan.kernel == Kernel::kStepwise) return name_of(plan.kernel);
  const std::string cell = class_of(q.problem.cell);
  if (plan.tile == kNoTile) return "persistent " + cell;
  std::string title = name_of(plan.kernel) + (" " + cell) + text(" H<=%d", plan.hidden);
  if (plan.cluster > 1) title += text(", %d blocks", plan.cluster);
  return title + text(", %d row%s", plan.rows, plan.rows > 1 ? "s" : "");
}

int tile_count() { return kTileCount; }

}  // namespace fusedrnn::cuda

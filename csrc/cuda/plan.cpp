// Which kernel runs a problem on a GPU: the cheapest by a model of what one time step costs. A pure
// function of plain data, compiled whether or not there is CUDA: a plan for any GPU can be made,
// and tested, on any machine.
//
// No constant below was measured on a GPU by this project yet. Where a figure says "simulated", the
// compiled code of these kernels (sm_90) was run through a model of the instruction issue; the rest
// are published figures or guesses, as marked. Measurements are to replace them.
#include <algorithm>
#include <cstdio>

#include "cuda/tiles.h"

namespace fusedrnn::cuda {
namespace {

// A persistent kernel's step is the multiply-adds of the blocks on a multiprocessor, which they
// share, and a wait in which it does none: reduction, activations, barrier; in a cluster also the
// exchange of h. Simulated for an LSTM going forward, in cycles, against this formula: H=128, one
// block of 1, 2, 4 rows 1215, 1839, 3353 (1170, 1890, 3330); H=256, 4 blocks 1287 (1390), 8 blocks
// of 2 rows 1619 (1470); H=512, 16 blocks 1334 (1390).
constexpr double kIssue = 1.25;  // cycles for what the multiply-add units could do in one
constexpr double kBlockWait = 530, kClusterWait = 750;
constexpr double kRowWait = 80;  // each row but the first

// Assumed for an H100: 45 of 67 TFLOP/s in fp32 matrix products of these sizes, 5.5 TB/s from L2.
constexpr double kProductShare = 0.67;  // of the peak
constexpr double kL2Bytes = 21;         // a cycle and multiprocessor, all of them reading
constexpr double kL2BytesAlone = 32;    // one of few that read; a guess

// Kernels one after the other in a stream, microseconds: a product and an element-wise one a step
// cannot take less than 4.7. Guesses.
constexpr double kLaunch = 2.2, kPointwise = 2.3, kLeastStep = 4.7;

// cuDNN's own persistent kernel: 2.65 us a step (B=16, H=128, forward; published, GPU unstated).
// Its other path launches as often as ours, but overlaps some of it: 0.9 is a guess.
constexpr double kTorchPersistent = 2.65, kTorchShare = 0.9;

constexpr double kMostRows = 2147483647;  // of x and y: persistent kernels count them in 32 bits

struct Limits {
  int threads;  // of a multiprocessor
  int fp32;     // multiply-adds a cycle and multiprocessor
  int fp64;
};

Limits limits_of(int sm) {
  const bool large = sm == 80 || (sm >= 90 && sm < 120);
  const int fp32 = sm <= 80 ? 64 : 128;
  const bool full_fp64 = sm == 80 || sm == 90 || sm == 100;
  return {sm < 80 ? 1024 : large ? 2048 : 1536, fp32, full_fp64 ? fp32 / 2 : 2};
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* name_of(Cell cell) {
  return cell == Cell::kLstm ? "LSTM" : cell == Cell::kGru ? "GRU" : "RNN";
}

enum class Obstacle {
  kNone,
  kNotAllowed,
  kExcluded,
  kProjected,
  kDType,
  kHidden,
  kRows,
  kCapability,
  kClusters,
  kClusterSize,
  kSharedMemory,
  kTorch
};

struct Candidate {
  Plan plan;
  Obstacle obstacle;
};

// Every call of a layer plans: text is made only for a caller that asks for it.
struct Text {
  char text[96];

  template <class... Args>
  explicit Text(const char* format, Args... args) {
    std::snprintf(text, sizeof(text), format, args...);
  }
  // Clang warns of a format without arguments that is no literal, as in the one above.
  explicit Text(const char* words) : Text("%s", words) {}
};

class Planner {
 public:
  Planner(Pass pass, const Problem& problem, const Setting& setting, const Device& device,
          const Experience& experience, unsigned allowed)
      : pass_(pass),
        p_(problem),
        directions_(setting.directions),
        device_(device),
        limits_(limits_of(device.sm)),
        experience_(experience),
        allowed_(allowed) {}

  Plan cheapest(Rejected rejected, void* context) {
    collect();
    const Candidate* best = nullptr;
    for (int i = 0; i < count_; ++i) {
      const Candidate& c = candidates_[i];
      if (c.obstacle != Obstacle::kNone) continue;
      if (!best || c.plan.step_us < best->plan.step_us) best = &c;
    }
    for (int i = 0; rejected && i < count_; ++i) {
      const Candidate& c = candidates_[i];
      if (&c == best) continue;
      rejected(context, name(c.plan).text, reason(c, best).text);
    }
    return best ? best->plan : plan_of(Kernel::kStepwise, -1, -1);
  }

 private:
  static constexpr int kCandidates = kTileCount + 3;

  void collect() {
    for (int i = 0; i < kTileCount; ++i) {
      if (!is_ours(kTiles[i])) continue;
      most_hidden_ = std::max(most_hidden_, kTiles[i].hidden);
      const bool fits = kTiles[i].hidden >= p_.H && p_.dtype == DType::kFloat32 && !p_.projected;
      if (fits) add(tile_plan(i));
    }
    if (count_ == 0) {  // one candidate for all of them, and one reason
      const Plan any = plan_of(Kernel::kBlock, -1, -1);
      const bool other_dtype = p_.dtype != DType::kFloat32;
      candidates_[count_++] = {any, p_.projected  ? Obstacle::kProjected
                                    : other_dtype ? Obstacle::kDType
                                                  : Obstacle::kHidden};
    }
    add(plan_of(Kernel::kStepwise, -1, stepwise_us()));
    add(plan_of(Kernel::kTorch, -1, torch_us()));
  }

  bool is_ours(const Tile& tile) const { return gates_of(tile.cell) == gates_of(p_.cell); }

  Plan plan_of(Kernel kernel, int tile, double step_us) const {
    Plan plan{};
    plan.kernel = kernel;
    plan.tile = tile;
    plan.hidden = int(p_.H);
    plan.cluster = 1;
    plan.step_us = step_us;
    return plan;
  }

  Plan tile_plan(int index) const {
    const Tile& tile = kTiles[index];
    const Shape shape = pass_ == Pass::kForward ? forward_shape(tile) : backward_shape(tile);
    const Kernel kernel = tile.cluster > 1 ? Kernel::kCluster : Kernel::kBlock;
    Plan plan = plan_of(kernel, index, -1);
    plan.hidden = tile.hidden;
    plan.cluster = tile.cluster;
    plan.rows = tile.rows;
    plan.threads = shape.threads;
    plan.registers = shape.registers();
    plan.shared_bytes = shape.shared_bytes;
    plan.blocks = ceil_div(p_.B, tile.rows) * tile.cluster;
    return plan;
  }

  void add(const Plan& plan) {
    Candidate& c = candidates_[count_++];
    c = {plan, obstacle_of(plan)};
    if (c.obstacle == Obstacle::kNone && plan.tile >= 0) c.plan.step_us = persistent_us(plan);
  }

  Obstacle obstacle_of(const Plan& plan) const {
    if (!(allowed_ & 1u << int(plan.kernel))) return Obstacle::kNotAllowed;
    if (plan.kernel == Kernel::kTorch && allowed_ != 1u << int(Kernel::kTorch) && !torch_takes(p_))
      return Obstacle::kTorch;
    if (plan.tile < 0) return Obstacle::kNone;
    if (double(p_.T) * double(p_.B) >= kMostRows) return Obstacle::kRows;
    if (allowed_ >> kTileShift && allowed_ >> kTileShift != unsigned(plan.tile) + 1)
      return Obstacle::kNotAllowed;
    if (experience_.excluded[int(pass_)] >> plan.tile & 1) return Obstacle::kExcluded;
    if (device_.sm < 75) return Obstacle::kCapability;
    if (plan.kernel == Kernel::kCluster) {
      // 12.x has clusters too, but not the shared memory that these kernels were cut up for.
      if (device_.sm < 90 || device_.sm >= 120) return Obstacle::kClusters;
      if (clusters_at_once(plan.cluster) == 0) return Obstacle::kClusterSize;
    }
    return plan.shared_bytes > device_.shared_bytes ? Obstacle::kSharedMemory : Obstacle::kNone;
  }

  Text name(const Plan& plan) const {
    const char* cell = name_of(p_.cell);
    const char* plural = plan.rows > 1 ? "s" : "";
    if (plan.kernel == Kernel::kTorch) return Text("cuDNN");
    if (plan.kernel == Kernel::kStepwise) return Text("stepwise");
    if (plan.tile < 0) return Text("persistent %s", cell);
    if (plan.cluster == 1) {
      return Text("block %s H<=%d, %d row%s", cell, plan.hidden, plan.rows, plural);
    }
    return Text("cluster %s H<=%d, %d blocks, %d row%s", cell, plan.hidden, plan.cluster, plan.rows,
                plural);
  }

  Text reason(const Candidate& c, const Candidate* best) const {
    const int major = device_.sm / 10, minor = device_.sm % 10;
    switch (c.obstacle) {
      case Obstacle::kNone:
        return Text("estimated %.2f us a step, the cheapest %.2f", c.plan.step_us,
                    best->plan.step_us);
      case Obstacle::kNotAllowed:
        return Text("not among the kernels allowed");
      case Obstacle::kExcluded:
        return Text("was taken out: it failed on this device");
      case Obstacle::kProjected:
        return Text("h is not projected in it, P = %lld", static_cast<long long>(p_.P));
      case Obstacle::kDType:
        return Text("computes in float32, the input is float64");
      case Obstacle::kHidden:
        return Text("made for H <= %d, not %lld", most_hidden_, static_cast<long long>(p_.H));
      case Obstacle::kRows:
        return Text("counts rows in 32 bits, T*B = %.3g", double(p_.T) * double(p_.B));
      case Obstacle::kCapability:
        return Text("needs compute capability 7.5, the device has %d.%d", major, minor);
      case Obstacle::kClusters:
        return Text("needs the clusters of compute capability 9.0 or 10.0, the device has %d.%d",
                    major, minor);
      case Obstacle::kClusterSize:
        return Text("the device runs no cluster of %d blocks", c.plan.cluster);
      case Obstacle::kTorch:
        return p_.dtype == DType::kFloat64 ? Text("cannot be differentiated twice, as float64 is")
                                           : Text("takes at most 65535 steps and rows");
      case Obstacle::kSharedMemory:
        break;
    }
    return Text("needs %.1f KiB of shared memory a block, the device has %.1f",
                double(c.plan.shared_bytes) / 1024, double(device_.shared_bytes) / 1024);
  }

  int clusters_at_once(int blocks) const {
    int log2 = 0;
    while (1 << log2 < blocks) ++log2;
    return device_.clusters[log2];
  }

  // Blocks of a kernel that fit on a multiprocessor. Beside the weights a kernel uses, as
  // compiled for sm_90, about 48 registers with no row and 16 more with each. A cluster has its
  // multiprocessors to itself, as the number of clusters in Device was counted.
  int64_t blocks_at_once(const Plan& plan) const {
    const Tile& tile = kTiles[plan.tile];
    const Cut& cut = pass_ == Pass::kForward ? tile.forward : tile.backward;
    const int used = std::min(plan.registers, 4 * cut.registers + 48 + 16 * plan.rows);
    const int64_t registers = (used + 7) / 8 * 8 * plan.threads;
    constexpr int64_t kReserved = 1024;  // of every block, by the system
    const int64_t by_memory = (device_.shared_bytes + kReserved) / (plan.shared_bytes + kReserved);
    const int64_t most = std::min<int64_t>(limits_.threads / plan.threads, 65536 / registers);
    return std::max<int64_t>(1, std::min(most, by_memory));
  }

  double persistent_us(const Plan& plan) const {
    const bool cluster = plan.cluster > 1;
    const double weights = double(gates_of(p_.cell) * plan.hidden * plan.hidden) / plan.cluster;
    const double work = kIssue * weights * plan.rows / limits_.fp32;
    const double wait = (cluster ? kClusterWait : kBlockWait) + kRowWait * (plan.rows - 1);
    // Units of blocks or clusters: `places` run side by side, `depth` of them share a place.
    const int64_t units = ceil_div(p_.B, plan.rows) * directions_;
    const int64_t places = cluster ? clusters_at_once(plan.cluster) : device_.multiprocessors;
    const int64_t depth = cluster ? 1 : blocks_at_once(plan);
    const int64_t waves = units / (places * depth), rest = units % (places * depth);
    const int64_t last_depth = ceil_div(rest, places);
    const double step = double(waves) * (work * double(depth) + wait) +
                        (rest ? work * double(last_depth) + wait : 0);
    const double loaded = 4 * weights * double(units * plan.cluster);
    const double load = std::max(loaded / (kL2Bytes * device_.multiprocessors),
                                 4 * weights * double(waves * depth + last_depth) / kL2BytesAlone);
    return us(step) + per_step(us(load) + kLaunch);
  }

  double us(double cycles) const { return cycles / (device_.clock_ghz * 1e3); }
  double per_step(double once) const { return p_.T > 0 ? once / double(p_.T) : once; }

  // A matrix product of B rows with a matrix of `weights` elements.
  double product_us(double weights) const {
    const int rate = p_.dtype == DType::kFloat32 ? limits_.fp32 : limits_.fp64;
    const double arithmetic = weights * double(p_.B) / (kProductShare * rate);
    const double traffic = weights * double(size_of(p_.dtype)) / kL2Bytes;
    return us(std::max(arithmetic, traffic) / device_.multiprocessors);
  }

  double stepwise_us() const {
    const double weights = double(gates_of(p_.cell) * p_.H * p_.P);
    double step = std::max(kLeastStep, kLaunch + product_us(weights) + kPointwise);
    if (p_.projected) step += kLaunch + product_us(double(p_.H * p_.P));
    return step * directions_;
  }

  double torch_us() const {
    const bool forward = pass_ == Pass::kForward, elman = gates_of(p_.cell) == 1;
    const int64_t most = elman ? (forward ? 384 : 256) : (forward ? 192 : 128);
    const bool plain = p_.dtype == DType::kFloat32 && !p_.projected && !p_.offsets;
    if (!plain || p_.H > most) return kTorchShare * stepwise_us();
    const double weights = double(gates_of(p_.cell) * p_.H * p_.H);
    const double step = (kTorchPersistent + product_us(weights)) * directions_;
    return step + per_step(us(4 * weights / kL2Bytes) + kLaunch);
  }

  const Pass pass_;
  const Problem& p_;
  const int directions_;
  const Device& device_;
  const Limits limits_;
  const Experience& experience_;
  const unsigned allowed_;
  Candidate candidates_[kCandidates];
  int count_ = 0, most_hidden_ = 0;
};

}  // namespace

Plan plan(Pass pass, const Problem& problem, const Setting& setting, const Device& device,
          const Experience& experience, unsigned allowed, Rejected rejected, void* context) {
  return Planner(pass, problem, setting, device, experience, allowed).cheapest(rejected, context);
}

int tile_count() { return kTileCount; }

}  // namespace fusedrnn::cuda

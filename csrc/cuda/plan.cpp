// Which kernel runs a problem on a GPU: the cheapest, as measured on the device, or by a model of
// what a time step costs (cost.h) while nothing is measured. A pure function of plain data,
// compiled whether or not there is CUDA: a plan for any GPU can be made, and tested, on any
// machine.
#include <algorithm>
#include <cstdio>

#include "cuda/cost.h"

namespace fusedrnn::cuda {
namespace {

constexpr double kMostRows = 2147483647;  // of x and y: persistent kernels count them in 32 bits

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
  kTorch,
  kWaves,
  kUnmeasured
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
        setting_(setting),
        device_(device),
        experience_(experience),
        allowed_(allowed),
        cost_(pass, problem, setting, device) {}

  Plan cheapest(Rejected rejected, void* context) {
    collect();
    take_measured();
    prefer_what_is_known();
    const Candidate* best = choice();
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
      const bool fits =
          kTiles[i].hidden >= p_.H && p_.dtypes.computed == DType::kFloat32 && !p_.projected;
      if (fits) add(tile_plan(i));
    }
    if (count_ == 0) {  // one candidate for all of them, and one reason
      const Plan any = plan_of(Kernel::kBlock, -1, -1);
      const bool other_dtype = p_.dtypes.computed != DType::kFloat32;
      candidates_[count_++] = {any, p_.projected  ? Obstacle::kProjected
                                    : other_dtype ? Obstacle::kDType
                                                  : Obstacle::kHidden};
    }
    add(plan_of(Kernel::kStepwise, -1, cost_.stepwise()));
    add(plan_of(Kernel::kTorch, -1, cost_.torch()));
  }

  // A measured candidate goes before all that are not; where none is, many waves of blocks leave
  // the problem to cuDNN, if that may take it.
  void prefer_what_is_known() {
    const Candidate& torch = candidates_[count_ - 1];
    bool measured = false;
    for (int i = 0; i < count_; ++i)
      measured |= is_open(candidates_[i]) && candidates_[i].plan.measured;
    for (int i = 0; i < count_; ++i) {
      Candidate& c = candidates_[i];
      if (!is_open(c) || c.plan.measured) continue;
      if (measured)
        c.obstacle = Obstacle::kUnmeasured;
      else if (c.plan.yields && (is_open(torch) || allowed_ & kNoneYields))
        c.obstacle = Obstacle::kWaves;
    }
  }

  static bool is_open(const Candidate& c) { return c.obstacle == Obstacle::kNone; }

  const Candidate* choice() const {
    const Candidate *best = nullptr, *block = nullptr;
    for (int i = 0; i < count_; ++i) {
      const Candidate& c = candidates_[i];
      if (!is_open(c)) continue;
      if (!best || c.plan.step_us < best->plan.step_us) best = &c;
      if (c.plan.kernel != Kernel::kBlock) continue;
      if (!block || c.plan.step_us < block->plan.step_us) block = &c;
    }
    return best && block && keeps_block(best->plan, block->plan) ? block : best;
  }

  // The exchange in a cluster is estimated: a small gain by it may be none.
  static bool keeps_block(const Plan& best, const Plan& block) {
    return best.kernel == Kernel::kCluster && !best.measured &&
           best.step_us > (1 - kClusterMargin) * block.step_us;
  }

  bool is_ours(const Tile& tile) const { return gates_of(tile.cell) == gates_of(p_.cell); }

  Plan plan_of(Kernel kernel, int tile, double step_us) const {
    Plan plan{};
    plan.kernel = kernel;
    plan.tile = tile;
    plan.hidden = int(p_.H);
    plan.cluster = 1;
    plan.step_us = step_us;
    plan.recurrence_us = step_us;
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
    plan.blocks = (p_.B + tile.rows - 1) / tile.rows * tile.cluster;
    return plan;
  }

  void add(const Plan& plan) {
    Candidate& c = candidates_[count_++];
    c = {plan, obstacle_of(plan)};
    if (is_open(c) && plan.tile >= 0) cost_.persistent(c.plan);
  }

  bool is_class_of(const Measured& m) const {
    const Cell cell = p_.cell == Cell::kRnnRelu ? Cell::kRnnTanh : p_.cell;
    return m.cell == cell && m.pass == pass_ && m.training == p_.training &&
           m.tf32 == setting_.tf32 && m.H == class_of_H(p_.H) && m.B == class_of_B(p_.B) &&
           m.D == setting_.directions;
  }

  // Takes over what was measured of the problem's class. Our layers run one after the other: one
  // layer's figure serves any number, and comes before one of more.
  void take_measured() {
    if (p_.dtypes.computed != DType::kFloat32 || p_.projected) return;
    for (int64_t i = 0; i < experience_.count; ++i) {
      const Measured& m = experience_.measured[i];
      if (!is_class_of(m)) continue;
      const bool torch = m.kernel == Kernel::kTorch;
      const bool same = m.L == (torch ? class_of_L(setting_.L) : 1);
      for (int k = 0; k < count_; ++k) {
        Plan& plan = candidates_[k].plan;
        if (!is_open(candidates_[k]) || m.kernel != plan.kernel || m.tile != plan.tile) continue;
        if (!same && (torch || plan.measured)) continue;
        plan.step_us = m.step_us;
        plan.measured = true;
      }
    }
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
      if (cost_.places(plan.cluster) == 0) return Obstacle::kClusterSize;
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
        if (c.plan.step_us < best->plan.step_us) {
          return Text("estimated %.2f us a step, unmeasured and hardly below the block's %.2f",
                      c.plan.step_us, best->plan.step_us);
        }
        return Text(c.plan.measured ? "measured %.2f us a step, the cheapest %.2f"
                                    : "estimated %.2f us a step, the cheapest %.2f",
                    c.plan.step_us, best->plan.step_us);
      case Obstacle::kWaves:
        return Text("over %.0f waves of blocks are left to cuDNN until measured",
                    double(kTrustedWaves));
      case Obstacle::kUnmeasured:
        return Text("estimated %.2f us a step, while others were measured", c.plan.step_us);
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
        return p_.dtypes.computed == DType::kFloat64
                   ? Text("cannot be differentiated twice, as float64 is")
                   : Text("takes at most 65535 steps and rows");
      case Obstacle::kSharedMemory:
        break;
    }
    return Text("needs %.1f KiB of shared memory a block, the device has %.1f",
                double(c.plan.shared_bytes) / 1024, double(device_.shared_bytes) / 1024);
  }

  const Pass pass_;
  const Problem& p_;
  const Setting& setting_;
  const Device& device_;
  const Experience& experience_;
  const unsigned allowed_;
  const Cost cost_;
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

// How a layer runs on a GPU: what a plan is, what it depends on, and the one chooser that the
// operators obey and explain() prints. Plain data and pure functions, no torch and no CUDA headers:
// a plan for any GPU can be made, and tested, on any machine.
#pragma once

#include <optional>
#include <string>

#include "model/choice.h"
#include "model/problem.h"

namespace fusedrnn::cuda {

// A GPU's limits.
struct Device {
  int sm;  // 90: compute capability 9.0
  int multiprocessors;
  int64_t shared_bytes;  // most that one block may have
  double clock_ghz;
  int clusters[5];  // how many clusters of 1, 2, 4, 8, 16 blocks run at once; 0: none can
};

// kTorch is torch.nn's own path, cuDNN: the caller takes it, no kernel here does.
enum class Kernel { kBlock, kCluster, kStepwise, kTorch };
enum class Pass { kForward, kBackward };

const char* name_of(Kernel kernel);  // "block", "cluster", "stepwise", "torch"
std::optional<Kernel> kernel_named(const std::string& name);

struct Plan {
  Kernel kernel;
  int tile;     // row of the table in tiles.h; -1 for kernels that are not cut as one
  int hidden;   // H padded
  int cluster;  // blocks that share a batch row; 1 for kBlock
  int rows;     // batch rows of a block or cluster
  int threads;
  int registers;         // most that a thread may use
  int64_t shared_bytes;  // a block
  int64_t blocks;        // of one direction
  int64_t chunk;         // steps a launch, products of the next ones running beside it; 0: all T
  double step_us;        // one time step of all rows and directions, products included
  double recurrence_us;  // the recurrence's part of step_us, always estimated
  bool yields;           // more waves of blocks than are trusted unmeasured: cuDNN first, if it may
  bool measured;         // step_us was measured on the device, not estimated
};

// What the choice depends on beside a layer's problem.
struct Setting {
  int directions;
  int64_t L;  // layers of the stack, which torch.nn's path may run side by side
  bool tf32;  // the products may use TF32: torch's switch for RNNs
  // Input size of the stack's top layer, by which a stack decides between torch's path and ours;
  // 0: the problem's.
  int64_t top_I = 0;
  // Stored in half precision. torch's path multiplies in it, ours converts to float32 first, so the
  // two costs are not compared: torch's path is taken wherever it may be.
  const char* half = nullptr;      // the dtype's name; null: no
  const char* no_torch = nullptr;  // why torch's path is out of the question for this call
};

// Measurements hold for a class of sizes: H up to the next of these, or of the powers of two above
// them; B up to the next power of two. A class is named by its largest member.
constexpr int64_t power_above(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}
constexpr int64_t class_of_H(int64_t H) {
  constexpr int kSizes[] = {32, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024};
  for (const int size : kSizes) {
    if (H <= size) return size;
  }
  return power_above(H);
}
constexpr int64_t class_of_B(int64_t B) { return power_above(B); }
constexpr int64_t class_of_L(int64_t L) { return L > 1 ? 2 : 1; }

// What one time step of a class of problems takes, products included.
struct Measured {
  Cell cell;  // the family, see CellSpec
  Pass pass;
  bool training, tf32;
  int H, B, D, L;
  Kernel kernel;
  int tile;  // -1 for kernels that are not cut as one
  double step_us;
};

// What running on a device has shown.
struct Experience {
  uint64_t excluded[2];      // by pass: bit i for tile i, which computed wrongly or did not start
  const Measured* measured;  // by `fusedrnn tune`
  int64_t count;
  uint64_t version;  // another one whenever something was added
};

// Whether a stack may be handed to cuDNN. Not where it refuses: it takes at most 65535 steps and
// rows. Nor float64 in training, which is mostly done to differentiate twice, as cuDNN cannot.
constexpr bool torch_takes(const Problem& p) {
  constexpr int64_t kMost = 65535;
  return p.T <= kMost && p.B <= kMost && !(p.dtypes.computed == DType::kFloat64 && p.training);
}

// The cheapest plan for one pass within the restriction; nothing where no kernel in it can run the
// problem, which the stepwise path always can. `reasons` gets every other candidate's, if not null.
std::optional<Plan> plan(Pass pass, const Problem& problem, const Setting& setting,
                         const Device& device, const Experience& experience,
                         const Restriction& restriction, Reasons* reasons = nullptr);

// How both passes of a layer run. They go one way, as do all layers of a stack: by torch's path or
// by ours.
struct Choice {
  bool by_torch;
  std::optional<Plan> pass[2];  // by Pass; the second only in training
};
struct ChoiceReasons {
  Reasons pass[2];
};

// torch's path is chosen where the restriction and the setting allow it, cuDNN takes the problem,
// and it is cheaper than every kernel of ours, forward and in training backward together: cuDNN can
// go back only where it went forward. A way that was measured goes before one that is estimated;
// where ours yields, a plan of ours that does not must be dearer than cuDNN too.
Choice choose(const Problem& problem, const Setting& setting, const Device& device,
              const Experience& experience, const Restriction& restriction,
              ChoiceReasons* reasons = nullptr);

int tile_count();  // rows of the table in tiles.h

}  // namespace fusedrnn::cuda

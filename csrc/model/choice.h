// Why a plan is what it is. Whoever plans is handed one of these where somebody asks, as explain()
// does, and null where a call only needs the plan, which then makes no text. The words are written
// where the decision is made, so no rule is told a second time elsewhere.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fusedrnn {

struct Reasons {
  std::string chosen;                                         // why this plan
  std::vector<std::pair<std::string, std::string>> rejected;  // a candidate, why not this one

  // A further reason for what was chosen.
  void because(const std::string& why) { chosen += chosen.empty() ? why : "; " + why; }
  void reject(std::string candidate, std::string why) {
    rejected.emplace_back(std::move(candidate), std::move(why));
  }
};

// The CUDA kernels that a plan may choose from: all of them, unless the user names one, a tile is
// tried by itself, or torch's path is out of the question.
struct Restriction {
  bool block = true, cluster = true, stepwise = true, torch = true;
  int tile = -1;  // the one row of csrc/cuda/tiles.h that block and cluster may be; -1: any
  bool none_yields = false;  // leave out what is better left to cuDNN while nothing is measured

  bool persistent() const { return block || cluster; }
  bool ours() const { return persistent() || stepwise; }
  bool only_torch() const { return torch && !ours(); }
  bool names_one() const { return block + cluster + stepwise + torch == 1; }

  static Restriction to_torch() { return {false, false, false, true, -1, false}; }
  static Restriction to_stepwise() { return {false, false, true, false, -1, false}; }
  // Block and cluster kernels, of this tile alone; of any where it is -1.
  static Restriction to_tile(int tile) { return {true, true, false, false, tile, false}; }
  Restriction without_torch() const {
    Restriction rest = *this;
    rest.torch = false;
    return rest;
  }

  friend bool operator==(const Restriction& a, const Restriction& b) {
    return a.block == b.block && a.cluster == b.cluster && a.stepwise == b.stepwise &&
           a.torch == b.torch && a.tile == b.tile && a.none_yields == b.none_yields;
  }
};

}  // namespace fusedrnn

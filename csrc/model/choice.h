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

}  // namespace fusedrnn

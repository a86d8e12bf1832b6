// See plan.h. The cheapest kernel is chosen, as measured on the device, or by a model of what a
// time step costs (cost.h) while nothing is measured.
#include "cuda/plan.h"

#include "cuda/kernels.h"

namespace fusedrnn::cuda {
namespace {

// How a candidate stands in a choice.
enum class Standing { kOpen, kNotAllowed, kRefused, kUnmeasured, kYields };

struct Candidate {
  Plan plan;
  bool refused;
  Standing standing;
};

bool is_allowed(const Restriction& restriction, const Plan& plan) {
  switch (plan.kernel) {
    case Kernel::kStepwise:
      return restriction.stepwise;
    case Kernel::kTorch:
      return restriction.torch;
    case Kernel::kBlock:
    case Kernel::kCluster:
      break;
  }
  if (plan.tile == kNoTile) return true;  // refused anyway, for a better reason
  const bool kernel = plan.kernel == Kernel::kBlock ? restriction.block : restriction.cluster;
  return kernel && (restriction.tile < 0 || restriction.tile == plan.tile);
}

// All candidates for one pass of a problem, asked once, among which any restriction may then
// choose.
class Candidates {
 public:
  Candidates(Pass pass, const Problem& problem, const Setting& setting, const Device& device,
             const Experience& experience)
      : q_(pass, problem, setting, device, experience) {
    const bool made = problem.dtypes.computed == DType::kFloat32 && !problem.projected;
    for (int i = 0; made && i < kTileCount; ++i) {
      if (kTiles[i].cell != spec(problem.cell).family || kTiles[i].hidden < problem.H) continue;
      add(kTiles[i].cluster > 1 ? Kernel::kCluster : Kernel::kBlock, i);
    }
    if (count_ == 0) add(Kernel::kBlock, kNoTile);
    add(Kernel::kStepwise, kNoTile);
    add(Kernel::kTorch, kNoTile);
    if (made) take_measured();
  }
  Candidates(const Candidates&) = delete;
  Candidates& operator=(const Candidates&) = delete;

  // The cheapest within a restriction; null where there is none. Valid as long as this is.
  const Plan* cheapest(const Restriction& restriction) {
    stand(restriction);
    const Candidate *best = nullptr, *block = nullptr;
    for (int i = 0; i < count_; ++i) {
      const Candidate& c = all_[i];
      if (c.standing != Standing::kOpen) continue;
      if (!best || c.plan.step_us < best->plan.step_us) best = &c;
      if (c.plan.kernel != Kernel::kBlock) continue;
      if (!block || c.plan.step_us < block->plan.step_us) block = &c;
    }
    if (best && block && keeps_block(best->plan, block->plan)) best = block;
    return best ? &best->plan : nullptr;
  }

  int count() const { return count_; }
  const Plan& plan(int i) const { return all_[i].plan; }
  std::string title(const Plan& plan) const { return title_of(q_, plan); }

  // Why candidate i was not taken in the last choice, of which `best` came out.
  std::string reason(int i, const Plan* best) const {
    const Plan& plan = all_[i].plan;
    std::string why;
    switch (all_[i].standing) {
      case Standing::kNotAllowed:
        return "not among the kernels allowed";
      case Standing::kRefused:
        answers_of(plan.kernel).refuses(q_, plan, &why);
        return why;
      case Standing::kUnmeasured:
        return text("estimated %.2f us a step, while others were measured", plan.step_us);
      case Standing::kYields:
        return text("over %.0f waves of blocks are left to cuDNN until measured",
                    double(kTrustedWaves));
      case Standing::kOpen:
        break;
    }
    if (plan.step_us < best->step_us)
      return text("estimated %.2f us a step, unmeasured and hardly below the block's %.2f",
                  plan.step_us, best->step_us);
    return text("%s %.2f us a step, the cheapest %.2f", plan.measured ? "measured" : "estimated",
                plan.step_us, best->step_us);
  }

 private:
  void add(Kernel kernel, int tile) {
    const KernelAnswers& answers = answers_of(kernel);
    Candidate& c = all_[count_++];
    c.plan = answers.configure(q_, tile);
    c.refused = answers.refuses(q_, c.plan, nullptr);
    // torch's path may be taken although it refuses: it has a cost all the same.
    if (!c.refused || kernel == Kernel::kTorch) answers.microseconds(q_, c.plan);
  }

  bool is_class_of(const Measured& m) const {
    const Problem& p = q_.problem;
    return m.cell == spec(p.cell).family && m.pass == q_.pass && m.training == p.training &&
           m.tf32 == q_.setting.tf32 && m.H == class_of_H(p.H) && m.B == class_of_B(p.B) &&
           m.D == q_.setting.directions;
  }

  // Takes over what was measured of the problem's class. Our layers run one after the other, so one
  // layer's figure serves any number of them, and goes before a figure of several.
  void take_measured() {
    for (int64_t i = 0; i < q_.experience.count; ++i) {
      const Measured& m = q_.experience.measured[i];
      if (!is_class_of(m)) continue;
      const bool torch = m.kernel == Kernel::kTorch;
      const bool same = m.L == (torch ? class_of_L(q_.setting.L) : 1);
      for (int k = 0; k < count_; ++k) {
        Plan& plan = all_[k].plan;
        const bool refused = all_[k].refused && !torch;
        if (refused || m.kernel != plan.kernel || m.tile != plan.tile) continue;
        if (!same && (torch || plan.measured)) continue;
        plan.step_us = m.step_us;
        plan.measured = true;
      }
    }
  }

  // How each candidate stands under a restriction. One that was measured goes before all that were
  // not. Where none was, many waves of blocks leave the problem to cuDNN, if that may take it.
  void stand(const Restriction& restriction) {
    bool measured = false;
    for (int i = 0; i < count_; ++i) {
      Candidate& c = all_[i];
      // Told to take torch's path and nothing else, one takes it, if there is such a layer.
      const bool told = c.plan.kernel == Kernel::kTorch && restriction.only_torch() &&
                        spec(q_.problem.cell).torch != TorchLayer::kNone;
      c.standing = !is_allowed(restriction, c.plan) ? Standing::kNotAllowed
                   : c.refused && !told             ? Standing::kRefused
                                                    : Standing::kOpen;
      measured |= c.standing == Standing::kOpen && c.plan.measured;
    }
    const bool may_yield =
        restriction.none_yields || all_[count_ - 1].standing == Standing::kOpen;  // torch's
    for (int i = 0; i < count_; ++i) {
      Candidate& c = all_[i];
      if (c.standing != Standing::kOpen || c.plan.measured) continue;
      if (measured)
        c.standing = Standing::kUnmeasured;
      else if (c.plan.yields && may_yield)
        c.standing = Standing::kYields;
    }
  }

  // The exchange in a cluster is estimated: a small gain by it may be none.
  static bool keeps_block(const Plan& best, const Plan& block) {
    return best.kernel == Kernel::kCluster && !best.measured &&
           best.step_us > (1 - kClusterMargin) * block.step_us;
  }

  const Question q_;
  Candidate all_[kTileCount + 3];
  int count_ = 0;
};

void tell(const Candidates& candidates, const Plan* best, Reasons& reasons) {
  if (best) reasons.because(answers_of(best->kernel).merit);
  for (int i = 0; i < candidates.count(); ++i) {
    const Plan& plan = candidates.plan(i);
    if (&plan != best) reasons.reject(candidates.title(plan), candidates.reason(i, best));
  }
}

// Candidates for each pass that there is.
struct Passes {
  std::optional<Candidates> pass[2];

  Passes(const Problem& problem, const Setting& setting, const Device& device,
         const Experience& experience) {
    pass[0].emplace(Pass::kForward, problem, setting, device, experience);
    if (problem.training) pass[1].emplace(Pass::kBackward, problem, setting, device, experience);
  }
};

// A time step of all passes, each on the cheapest kernel within a restriction.
struct Way {
  double us = 0;
  bool possible = true, measured = true, yields = false;

  Way(Passes& passes, const Restriction& restriction) {
    for (std::optional<Candidates>& candidates : passes.pass) {
      if (!candidates) continue;
      const Plan* const plan = candidates->cheapest(restriction);
      if (!plan) {
        possible = false;
        return;
      }
      us += plan->step_us;
      measured = measured && plan->measured;
      yields = yields || (plan->yields && !plan->measured);
    }
  }
};

bool torch_is_cheaper(Passes& passes, const Restriction& restriction) {
  Restriction ours_only = restriction.without_torch();
  const Way ours(passes, ours_only), theirs(passes, Restriction::to_torch());
  if (!ours.possible || !theirs.possible) return theirs.possible;
  if (ours.measured != theirs.measured) return theirs.measured;
  if (theirs.us < ours.us || !ours.yields) return theirs.us < ours.us;
  ours_only.none_yields = ours_only.stepwise = true;
  return theirs.us < Way(passes, ours_only).us;
}

// Why a pass goes as it does. `restriction` is the user's; torch's path is out of it where the
// setting says so; `left` is what the way that was chosen leaves of it.
void tell(Candidates& candidates, bool by_torch, const Setting& setting,
          const Restriction& restriction, const Restriction& left, Reasons& reasons) {
  const Restriction open = setting.no_torch ? restriction.without_torch() : restriction;
  if (by_torch && setting.half) {
    reasons.because(
        text("cuDNN works in %s; ours would convert it, and is not compared (estimate: "
             "float32's)",
             setting.half));
    return;
  }
  const auto all_reasons = [&](const Restriction& restriction, const Plan*& best) {
    best = candidates.cheapest(restriction);
    std::vector<std::string> all;
    for (int i = 0; i < candidates.count(); ++i)
      all.push_back(&candidates.plan(i) == best ? "" : candidates.reason(i, best));
    return all;
  };
  const Plan *cheapest, *taken;
  const std::vector<std::string> of_all = all_reasons(open, cheapest);
  const std::vector<std::string> of_way = all_reasons(left, taken);
  reasons.because(answers_of(taken->kernel).merit);
  if (restriction.tile >= 0) {
    reasons.because("FUSEDRNN_CUDA_TILE names it");
  } else if (restriction.names_one()) {
    reasons.because("FUSEDRNN_CUDA_KERNEL names it");
  }
  for (int i = 0; i < candidates.count(); ++i) {
    const Plan& plan = candidates.plan(i);
    if (&plan == taken || &plan == cheapest) continue;
    const bool torch = plan.kernel == Kernel::kTorch;
    reasons.reject(candidates.title(plan), torch && restriction.torch && setting.no_torch
                                               ? setting.no_torch
                                           : by_torch || torch ? of_all[i]
                                                               : of_way[i]);
  }
  if (cheapest && cheapest != taken) {
    reasons.reject(candidates.title(*cheapest),
                   text("%s %.2f us a step, but both passes and all layers go one way",
                        cheapest->measured ? "measured" : "estimated", cheapest->step_us));
  }
}

}  // namespace

std::optional<Plan> plan(Pass pass, const Problem& problem, const Setting& setting,
                         const Device& device, const Experience& experience,
                         const Restriction& restriction, Reasons* reasons) {
  Candidates candidates(pass, problem, setting, device, experience);
  const Plan* const best = candidates.cheapest(restriction);
  if (reasons) tell(candidates, best, *reasons);
  return best ? std::optional(*best) : std::nullopt;
}

Choice choose(const Problem& problem, const Setting& setting, const Device& device,
              const Experience& experience, const Restriction& restriction,
              ChoiceReasons* reasons) {
  Passes passes(problem, setting, device, experience);
  const Restriction open = setting.no_torch ? restriction.without_torch() : restriction;
  Choice choice{};
  if (open.torch && spec(problem.cell).torch != TorchLayer::kNone) {
    Problem top = problem;
    if (setting.top_I > 0) top.I = setting.top_I;
    if (open.only_torch()) {
      choice.by_torch = true;
    } else if (setting.half || !torch_takes(problem)) {
      choice.by_torch = torch_takes(problem);
    } else if (top.I == problem.I) {
      choice.by_torch = torch_is_cheaper(passes, open);
    } else {
      Passes of_top(top, setting, device, experience);
      choice.by_torch = torch_is_cheaper(of_top, open);
    }
  }
  const Restriction left = choice.by_torch ? Restriction::to_torch() : open.without_torch();
  for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
    std::optional<Candidates>& candidates = passes.pass[int(pass)];
    if (!candidates) continue;
    const Plan* const best = candidates->cheapest(left);
    if (!best) continue;
    choice.pass[int(pass)] = *best;
    if (reasons)
      tell(*candidates, choice.by_torch, setting, restriction, left, reasons->pass[int(pass)]);
  }
  return choice;
}

}  // namespace fusedrnn::cuda

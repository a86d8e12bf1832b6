// The kernels that can run a layer on a GPU, each by what it answers to the chooser: whether it
// refuses the problem and why, how it would be set up, what a time step would take. The fourth
// question, to run, is the operators': two of these paths are made of torch's own operators.
#pragma once

#include "cuda/cost.h"

namespace fusedrnn::cuda {

struct Question {
  Question(Pass pass, const Problem& problem, const Setting& setting, const Device& device,
           const Experience& experience)
      : pass(pass),
        problem(problem),
        setting(setting),
        device(device),
        experience(experience),
        cost(pass, problem, setting, device) {}

  const Pass pass;
  const Problem& problem;
  const Setting& setting;
  const Device& device;
  const Experience& experience;
  const Cost cost;
};

struct KernelAnswers {
  const char* name;
  const char* merit;  // what speaks for it, in words
  // Whether it refuses the problem, set up as in `plan`; `why` gets the reason if not null.
  bool (*refuses)(const Question& q, const Plan& plan, std::string* why);
  // `tile` is the row of the table for block and cluster, -1 for the others.
  Plan (*configure)(const Question& q, int tile);
  // Sets the plan's costs, of which no kernel that refuses has any.
  void (*microseconds)(const Question& q, Plan& plan);
};

const KernelAnswers& answers_of(Kernel kernel);

// Stands for all block and cluster kernels where none is made for such a problem: refused, with one
// reason.
constexpr int kNoTile = -1;

// What a plan's kernel is called among candidates: "block LSTM H<=128, 2 rows".
std::string title_of(const Question& q, const Plan& plan);

// As printf makes it.
[[gnu::format(printf, 1, 2)]] std::string text(const char* format, ...);

}  // namespace fusedrnn::cuda

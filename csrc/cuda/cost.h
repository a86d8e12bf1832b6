// A model of what one time step of a layer takes on a GPU, in microseconds: the recurrence and the
// products around it. Pure functions of plain data. The constants are in tuning.h.
#pragma once

#include "cuda/tiles.h"
#include "cuda/tuning.h"

namespace fusedrnn::cuda {

class Cost {
 public:
  Cost(Pass pass, const Problem& problem, const Setting& setting, const Device& device);

  // For a plan of a block or cluster kernel: sets its costs, and the chunk that pays best.
  void persistent(Plan& plan) const;
  // A step of one of the Setting::L layers, products included: by our stepwise path, by cuDNN.
  double stepwise() const;
  double torch() const;

  // How many clusters of `cluster` blocks run at once; 0: none can.
  int64_t places(int cluster) const;

 private:
  // A persistent kernel runs `count` units, each a block or a cluster. `places` of them run side by
  // side, and `depth` share one place.
  struct Units {
    int64_t count, places, depth, waves, last_depth;
  };
  struct Launch {
    double step, once;  // the recurrence; loading W_hh and the launch itself
    double left;        // the share of the multiprocessors that the recurrence does not use
  };
  Units units_of(const Plan& plan) const;
  Launch launch_of(const Plan& plan, const Units& units) const;
  double multiply_cycles(const Plan& plan, const Shape& shape, int64_t depth) const;
  double chunked(const Launch& launch, int64_t steps) const;  // all steps
  int64_t most_steps() const;

  int64_t blocks_at_once(const Plan& plan) const;
  double product(double rows, double in, double out, bool weights_anew = false,
                 bool tensor_cores = true) const;
  double products() const;
  double launches() const;
  double step_product(bool tensor_cores = true) const;  // h_prev W_hh', or what goes back
  double us(double cycles) const { return cycles / (clock_ * 1e3); }
  double steps() const { return double(p_.T > 0 ? p_.T : 1); }

  const Pass pass_;
  const Problem& p_;
  const Setting& setting_;
  const Device& device_;
  const Rates& rates_;
  const double clock_;     // GHz
  const double products_;  // with all inputs, a step
  const double launches_;  // of these, a layer or a chunk of it
};

}  // namespace fusedrnn::cuda

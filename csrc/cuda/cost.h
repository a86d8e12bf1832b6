// What one time step of a layer costs on a GPU, in microseconds, by a model: the recurrence and the
// products around it. Pure functions of plain data; the constants are in tuning.h.
#pragma once

#include "cuda/tiles.h"

namespace fusedrnn::cuda {

// What follows from a compute capability, a cycle and multiprocessor.
struct Limits {
  int threads;  // at most
  int fp32;     // multiply-adds
  int fp64;
  int tf32;  // on tensor cores; 0: none
};

Limits limits_of(int sm);

class Cost {
 public:
  Cost(Pass pass, const Problem& problem, const Setting& setting, const Device& device);

  // Sets what a persistent plan is estimated to take, and the chunk that pays best.
  void persistent(Plan& plan) const;
  // Our stepwise path; torch.nn's, cuDNN. One layer of Setting::L, products included.
  double stepwise() const;
  double torch() const;

  // A persistent plan is made of units, a block or a cluster each, of which `places` run side by
  // side and `depth` share a place.
  struct Units {
    int64_t count, places, depth, waves, last_depth;
  };
  Units units_of(const Plan& plan) const;
  int64_t places(int cluster) const;  // 0: the device runs no such cluster

 private:
  double multiply_cycles(const Plan& plan, int64_t depth) const;
  double recurrence(const Plan& plan, const Units& units) const;              // a step
  double load(const Plan& plan, const Units& units) const;                    // W_hh, a launch
  double chunked(const Plan& plan, const Units& units, int64_t steps) const;  // all steps
  int64_t most_steps() const;

  int64_t blocks_at_once(const Plan& plan) const;
  double product(double rows, double in, double out, bool weights_anew = false,
                 bool tensor_cores = true) const;
  double products() const;                              // with all inputs, a step
  double launches() const;                              // of these, a layer
  double step_product(bool tensor_cores = true) const;  // h_prev W_hh', or what goes back
  double us(double cycles) const { return cycles / (clock_ * 1e3); }
  double steps() const { return double(p_.T > 0 ? p_.T : 1); }

  const Pass pass_;
  const Problem& p_;
  const Setting& setting_;
  const Device& device_;
  const Limits limits_;
  const double clock_;  // GHz
};

}  // namespace fusedrnn::cuda

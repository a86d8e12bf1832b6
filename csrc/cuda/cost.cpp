// See cost.h.
#include "cuda/cost.h"

#include <algorithm>

namespace fusedrnn::cuda {
namespace {

int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kSchedulers = 4;  // of a multiprocessor: each issues for a quarter of the warps
constexpr int64_t kRegisters = 65536;
constexpr int64_t kReserved = 1024;  // bytes of shared memory, of every block, by the system

const Cut& cut_of(const Plan& plan, Pass pass) {
  const Tile& tile = kTiles[plan.tile];
  return pass == Pass::kForward ? tile.forward : tile.backward;
}

Shape shape_of(const Plan& plan, Pass pass) {
  const Tile& tile = kTiles[plan.tile];
  return pass == Pass::kForward ? forward_shape(tile) : backward_shape(tile);
}

const Rates& rates_of(int sm) {
  const Rates* found = kRates;
  for (const Rates& rates : kRates) {
    if (rates.sm <= sm) found = &rates;
  }
  return *found;
}

}  // namespace

Cost::Cost(Pass pass, const Problem& problem, const Setting& setting, const Device& device)
    : pass_(pass),
      p_(problem),
      setting_(setting),
      device_(device),
      rates_(rates_of(device.sm)),
      clock_(device.clock_ghz > 0 ? device.clock_ghz : kAssumedClock),
      products_(products()),
      launches_(launches()) {}

// A product of `rows` rows with a matrix. Its activations, or where a step does it alone its
// weights, come from L2.
double Cost::product(double rows, double in, double out, bool weights_anew,
                     bool tensor_cores) const {
  const bool single = p_.dtypes.computed == DType::kFloat32;
  const bool tf32 = single && setting_.tf32 && tensor_cores && rates_.tf32 > 0;
  const double rate = tf32     ? kTf32Share * rates_.tf32
                      : single ? kProductShare * rates_.fp32
                               : kProductShare * rates_.fp64;
  const double elements = weights_anew ? in * out : rows * (in + out);
  const double traffic = elements * double(size_of(p_.dtypes.computed)) / kL2Bytes;
  return us(std::max(rows * in * out / rate, traffic) / device_.multiprocessors);
}

double Cost::products() const {
  const double rows = double(p_.B), I = double(p_.I);
  const double gates = double(gates_of(p_.cell) * p_.H);
  const double input = product(rows, I, gates);
  if (pass_ == Pass::kForward) return input * setting_.directions;
  // dx, dW_ih, dW_hh.
  return (2 * input + product(rows, double(p_.P), gates)) * setting_.directions;
}

// Products and, going back, two sums for the biases and h of the steps before.
double Cost::launches() const {
  return kLaunch * setting_.directions * (pass_ == Pass::kForward ? 1 : 6);
}

double Cost::step_product(bool tensor_cores) const {
  return product(double(p_.B), double(p_.P), double(gates_of(p_.cell) * p_.H),
                 /*weights_anew=*/true, tensor_cores);
}

// Blocks of a kernel that fit on a multiprocessor. A cluster has its multiprocessors to itself, as
// the number of clusters in Device was counted.
int64_t Cost::blocks_at_once(const Plan& plan) const {
  const int used = std::min(plan.registers, 4 * cut_of(plan, pass_).registers +
                                                int(kUsedRegisters + kRowRegisters * plan.rows));
  const int64_t registers = (used + 7) / 8 * 8 * plan.threads;
  const int64_t by_memory = (device_.shared_bytes + kReserved) / (plan.shared_bytes + kReserved);
  const int64_t most = std::min<int64_t>(rates_.threads / plan.threads, kRegisters / registers);
  return std::max<int64_t>(1, std::min(most, by_memory));
}

int64_t Cost::places(int cluster) const {
  if (cluster == 1) return device_.multiprocessors;
  int log2 = 0;
  while (1 << log2 < cluster) ++log2;
  return device_.clusters[log2];
}

Cost::Units Cost::units_of(const Plan& plan) const {
  Units u{};
  u.count = quotient_up(p_.B, plan.rows) * setting_.directions;
  u.places = places(plan.cluster);
  u.depth = plan.cluster > 1 ? 1 : blocks_at_once(plan);
  u.waves = u.count / (u.places * u.depth);
  u.last_depth = quotient_up(u.count % (u.places * u.depth), u.places);
  return u;
}

// Multiply-adds, or shared memory: weights that registers have no room for are read once a step, h
// once a row. The warps of the blocks on a multiprocessor are dealt to its four schedulers.
double Cost::multiply_cycles(const Plan& plan, const Shape& s, int64_t depth) const {
  const int64_t warps = depth * s.threads / 32;
  const double each = 4.0 * s.quads * plan.rows;  // multiply-adds of a thread
  const double turns = double(quotient_up(warps, kSchedulers) * kSchedulers) * 32;
  const double shared =
      double(warps) * (kWeightRead * s.shared_quads + kStateRead * s.lane_quads * plan.rows);
  return std::max(kIssue * turns * each / rates_.fp32, shared);
}

Cost::Launch Cost::launch_of(const Plan& plan, const Units& u) const {
  const Shape shape = shape_of(plan, pass_);
  const double wait = (plan.cluster > 1 ? kClusterWait : kBlockWait) + kRowWait * (plan.rows - 1);
  double cycles = 0;
  if (u.waves > 0) cycles = double(u.waves) * (multiply_cycles(plan, shape, u.depth) + wait);
  if (u.last_depth > 0) cycles += multiply_cycles(plan, shape, u.last_depth) + wait;
  const double bytes = 4.0 * double(gates_of(p_.cell)) * plan.hidden * plan.hidden / plan.cluster;
  const double all = bytes * double(u.count * plan.cluster);
  const double one = bytes * double(u.waves * u.depth + u.last_depth);
  const double load = std::max(all / (kL2Bytes * device_.multiprocessors), one / kL2BytesAlone);
  const double busy = double(std::min(u.count, u.places) * plan.cluster);
  return {us(cycles), us(load) + kLaunch, 1 - busy / device_.multiprocessors};
}

// All steps, `steps` a launch: the products of a chunk run beside the recurrence of its neighbour,
// on the multiprocessors that this leaves; those of the first (going back, the last) run alone.
double Cost::chunked(const Launch& launch, int64_t steps) const {
  const double count = double(quotient_up(p_.T, steps)), each = double(p_.T) / count;
  const double recur = each * launch.step + launch.once, multiply = each * products_;
  const double both = launch.left < kLeastBeside
                          ? recur + multiply
                          : std::max(recur, multiply / (launch.left * kBesideShare));
  const double chunk = std::max<double>(both + launches_, kChunkHost);
  return multiply + launches_ + (count - 1) * chunk + recur;
}

// Of a chunk, so that the slots of two fit in what they may take; T where nothing but the products
// needs them after (in training, the reserve holds them).
int64_t Cost::most_steps() const {
  const bool kept = p_.training && spec(p_.cell).keeps_slots;
  if (pass_ == Pass::kBackward || kept) return p_.T;
  const double step = 4.0 * double(p_.B) * double(gates_of(p_.cell) * p_.H) * setting_.directions;
  if (step * double(p_.T) <= kMostSlots) return p_.T;
  return std::max(int64_t(kMostSlots / (2 * step)), int64_t(kLeastChunk));
}

void Cost::persistent(Plan& plan) const {
  const Units u = units_of(plan);
  const Launch launch = launch_of(plan, u);
  plan.recurrence_us = launch.step + launch.once / steps();
  plan.yields = setting_.tf32 && rates_.tf32 > 0 &&
                double(u.count) > kTrustedWaves * double(u.places * u.depth);
  const int64_t most = most_steps();
  double all = launch.once + launches_ + (launch.step + products_) * steps();
  double best = most < p_.T ? -1 : all * (1 - kChunkGain);
  for (int64_t chunk = std::min(int64_t(kLeastChunk), most); chunk < p_.T && chunk <= most;
       chunk = chunk < most ? std::min(2 * chunk, most) : p_.T) {
    const double us = chunked(launch, chunk);
    if (best >= 0 && us > best) continue;
    best = all = us;
    plan.chunk = chunk;
  }
  plan.step_us = all / steps();
}

double Cost::stepwise() const {
  const double pointwise = pass_ == Pass::kForward ? kPointwise : kPointwiseBack;
  double step = kLaunch + step_product() + pointwise;
  if (p_.projected) {
    step += kLaunch + product(double(p_.B), double(p_.H), double(p_.P), /*weights_anew=*/true);
  }
  step = std::max<double>(step, kHostStep);
  return step * setting_.directions + products_ + launches_ / steps();
}

double Cost::torch() const {
  const bool forward = pass_ == Pass::kForward, one_gate = gates_of(p_.cell) == 1;
  const double D = setting_.directions;
  // The standard path: a wavefront shares the latency of a step, never the work.
  double step = kLaunch + step_product() + (forward ? kPointwise : kPointwiseBack);
  double work = step_product();
  if (p_.projected) {
    const double projection =
        product(double(p_.B), double(p_.H), double(p_.P), /*weights_anew=*/true);
    step += kLaunch + projection;
    work += projection;
  }
  step = kTorchShare * std::max<double>(step, kLeastStep);
  double found = std::max(step / std::min(double(setting_.L), double(kWavefront)), work) * D;
  // Its persistent kernel, for the sizes it takes: in fp32, whatever the switch says.
  const double most = one_gate ? (forward ? kTorchMostElman : kTorchMostElmanBack)
                               : (forward ? kTorchMost : kTorchMostBack);
  const bool plain = p_.dtypes.computed == DType::kFloat32 && !p_.projected && !p_.packed;
  if (plain && double(p_.H) <= most) {
    const double bytes = 4.0 * double(gates_of(p_.cell) * p_.H) * double(p_.H);
    const double once = us(bytes / kL2Bytes) + kLaunch;
    const double all = (kTorchPersistent + step_product(/*tensor_cores=*/false)) * D;
    found = std::min(found, all + once / steps());
  }
  return found + products_ + launches_ / steps();
}

}  // namespace fusedrnn::cuda

// Picks the instruction set variant once, plans, and hands a problem to the variant's kernels.
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/layout.h"
#include "cpu/team.h"
#include "cpu/variants.h"

namespace fusedrnn::cpu {
namespace {

struct Isa {
  const char* name;
  const Variant* variant;
};

// What this machine can run, slowest first; ends with a null name.
const Isa* isas() {
  static const auto table = [] {
    struct Table {
      Isa items[4];
    } t{};
    int n = 0;
    t.items[n++] = {"baseline", &baseline::variant()};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      t.items[n++] = {"avx2", &avx2::variant()};
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        t.items[n++] = {"avx512", &avx512::variant()};
      }
    }
#endif
    return t;
  }();
  return table.items;
}

const Isa& chosen() {
  static const Isa isa = [] {
    const char* wanted = std::getenv("FUSEDRNN_CPU_ISA");
    std::string possible;
    const Isa* best = nullptr;
    for (const Isa* i = isas(); i->name; ++i) {
      if (wanted && std::strcmp(wanted, i->name) == 0) return *i;
      possible += std::string(best ? ", " : "") + i->name;
      best = i;
    }
    if (wanted && *wanted) {
      throw std::runtime_error("FUSEDRNN_CPU_ISA must be one of " + possible +
                               " on this machine, got " + wanted);
    }
    return *best;
  }();
  return isa;
}

// Under this many FLOP a second thread costs more than it saves (a fork and join is 3 to 5 us).
constexpr double kFlopPerThread = 4e5;

int usable_threads(const Problem& p, int threads) {
  const double flop =
      2.0 * double(p.rows().total()) * double(gates_of(p.cell) * p.H) * double(p.I + p.P);
  return int(std::clamp(flop / kFlopPerThread, 1.0, double(std::max(threads, 1))));
}

// Rows to a thread means that each thread reads all of W_hh every step. Where that overflows L2,
// hidden units to a thread are better going forward: 1/n of the weights each, for a barrier a step
// (2 threads of a Zen 5: H=512 inference 28.3 -> 26.4 ms, H=1024 training 339 -> 253). Going back,
// there are two barriers, gate gradients from every thread, and products whose columns come in
// groups: it pays for few rows (2 threads of an Intel Xeon, LSTM fwd+bwd: T50 H512 B4 1.25 times as
// fast, B16 1.09, B64 1.00) and no others (Zen 5, H=256: 4.66 ms by rows, 4.90 by units).
bool prefers_hidden(const Problem& p, int threads, const Geometry& g, bool forward) {
  const int64_t weights = g.panels * g.depth() * p.P * size_of(p.dtypes.computed);
  if (weights <= kL2 || g.panels < 4 * threads) return false;
  const auto feeds_all = [&](int64_t columns) {
    const int64_t groups = groups_of(columns, g.lanes);
    return groups % threads == 0 || groups >= 4 * threads;
  };
  return forward || (p.B <= 8 * threads && feeds_all(p.P) && feeds_all(p.I));
}

Plan plan(const Problem& p, int threads, bool forward) {
  const Isa& isa = chosen();
  const int lanes = isa.variant->vector_bytes / int(size_of(p.dtypes.computed));
  const Geometry g(p.cell, p.H, lanes);
  Plan plan{};
  plan.isa = isa.name;
  plan.lanes = lanes;
  plan.unit_vectors = g.unit_vectors;
  plan.vectors = g.vectors;
  plan.tile_rows = isa.variant->tile_rows[g.vectors - 1];
  plan.panels = g.panels;
  plan.stretch = stretch_of(p, g);
  plan.threads = usable_threads(p, threads);
  plan.split = Split::kBatch;
  if (p.B < plan.threads || prefers_hidden(p, plan.threads, g, forward)) {
    plan.split = Split::kHidden;
    plan.threads = int(std::min<int64_t>(plan.threads, g.panels));
  }
  if (plan.threads == 1) plan.split = Split::kNone;
  plan.pairs = forward && packs_pairs(p);
  plan.direct = forward ? reads_in_place(p) : reads_in_place_back(p);
  plan.reserve_size = reserve_width(p) * p.rows().total();
  return plan;
}

}  // namespace

int64_t reserve_width(const Problem& p) {
  if (!p.training) return 0;
  const Geometry g(p.cell, p.H, chosen().variant->vector_bytes / int(size_of(p.dtypes.computed)));
  return Reserve<char>(nullptr, p, g).width;
}

// Half of the threads for each direction: fewer wait for each other, each for more rows (2 threads
// of a Zen 5, times torch.nn's speed in turn and at once: LSTM T100 B32 I300 H150 training 1.69 and
// 1.97, T100 B1 I128 H128 inference 2.2 and 3.4, T20 B16 I64 H64 2.3 and 3.4). Wide layers gain
// little and would pack twice as many weights at a time.
bool pairs_directions(const Problem& p) {
  return gates_of(p.cell) * p.H * p.P * size_of(p.dtypes.computed) <= 2 << 20;
}

int threads_of_direction(const Problem& p, int directions, int threads) {
  const bool at_once =
      directions == 2 && threads % 2 == 0 && pairs_directions(p) && usable_threads(p, threads) > 1;
  return at_once ? threads / 2 : threads;
}

Plan plan_forward(const Problem& p, int threads) {
  Plan result = plan(p, threads, true);
  const Geometry g(p.cell, p.H, result.lanes);
  result.workspace_bytes = ForwardBuffers<char>(nullptr, p, g, result.stretch).used;
  return result;
}

Plan plan_backward(const Problem& p, int threads) {
  Plan result = plan(p, threads, false);
  const Geometry g(p.cell, p.H, result.lanes);
  result.workspace_bytes = BackwardBuffers<char>(nullptr, p, g, result).used;
  return result;
}

void forward(const ForwardParams& params, const Plan& plan, const Team& team) {
  chosen().variant->forward(params, plan, team);
}

void backward(const BackwardParams& params, const Plan& plan, const Team& team) {
  chosen().variant->backward(params, plan, team);
}

const char* const* isa_names() {
  static const auto names = [] {
    struct Names {
      const char* items[4];
    } n{};
    for (int i = 0; isas()[i].name; ++i) n.items[i] = isas()[i].name;
    return n;
  }();
  return names.items;
}

const char* isa_name() { return chosen().name; }

double fma_peak(const Team& team, double seconds) {
  const Variant* widest = nullptr;
  for (const Isa* i = isas(); i->name; ++i) widest = i->variant;
  using Clock = std::chrono::steady_clock;
  // Every thread counts only what it does while all of them run.
  Barrier barrier;
  std::atomic<double> total{0};
  auto body = [&](int, int n) {
    barrier.wait(n);
    const auto start = Clock::now();
    double flop = 0, elapsed = 0;
    while (elapsed < seconds) {
      flop += widest->spin(20000);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    for (double seen = total; !total.compare_exchange_weak(seen, seen + flop / elapsed * 1e-9);) {
    }
  };
  run(team, team.threads, body);
  return total;
}

void eval_activation(bool tanh_not_sigmoid, const float* x, float* y, int64_t n) {
  chosen().variant->eval_activation(tanh_not_sigmoid, x, y, n);
}

}  // namespace fusedrnn::cpu

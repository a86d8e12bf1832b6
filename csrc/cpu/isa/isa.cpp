// Picks the instruction set variant once, and asks it what is no layer.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/isa/variants.h"
#include "cpu/team.h"
#include "model/choice.h"

namespace fusedrnn::cpu {
namespace {

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

}  // namespace

const Isa& chosen_isa() {
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

void tell_of_isas(Reasons& reasons) {
  const std::string chosen = chosen_isa().name;
  bool wider = false;
  for (const Isa* i = isas(); i->name; ++i) {
    if (i->name == chosen) {
      wider = true;
      continue;
    }
    reasons.reject(std::string("instruction set ") + i->name,
                   wider ? "FUSEDRNN_CPU_ISA=" + chosen + " rules it out" : "narrower vectors");
  }
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

const char* isa_name() { return chosen_isa().name; }

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
  chosen_isa().variant->eval_activation(tanh_not_sigmoid, x, y, n);
}

}  // namespace fusedrnn::cpu

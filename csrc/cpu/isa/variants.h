// The table that each instruction set variant fills in, which of them is in use, and the headers
// that their code needs, which must come before any change of target.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "cpu/layout.h"
#include "cpu/params.h"
#include "cpu/team.h"

// Functions between these two may use the given instruction sets. Clang knows no GCC target pragma,
// GCC no attribute push.
#define FUSEDRNN_PRAGMA(...) _Pragma(#__VA_ARGS__)
#ifdef __clang__
#define FUSEDRNN_BEGIN_TARGET(sets) \
  FUSEDRNN_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#define FUSEDRNN_END_TARGET _Pragma("clang attribute pop")
#else
#define FUSEDRNN_BEGIN_TARGET(sets) FUSEDRNN_PRAGMA(GCC target(sets))
#define FUSEDRNN_END_TARGET
#endif

namespace fusedrnn::cpu {

struct Variant {
  int vector_bytes;
  int tile_rows[4];  // by vectors of a panel, 1..4
  // The kernel for a problem's cell and types.
  ForwardKernel (*forward)(const Problem&, int unit_vectors);
  BackwardKernel (*backward)(const Problem&, int unit_vectors);
  PackKernel (*pack)(const Problem&);
  UnpackKernel (*unpack)(const Problem&);
  double (*spin)(int64_t rounds);
  void (*eval_activation)(bool tanh_not_sigmoid, const float* x, float* y, int64_t n);
};

namespace baseline {
const Variant& variant();
}
#if defined(__x86_64__)
namespace avx2 {
const Variant& variant();
}
namespace avx512 {
const Variant& variant();
}
#endif

struct Isa {
  const char* name;
  const Variant* variant;
};

// The fastest that this machine can run, or FUSEDRNN_CPU_ISA. Throws std::runtime_error on a bad
// name.
const Isa& chosen_isa();
// Why none of the others.
void tell_of_isas(Reasons& reasons);

}  // namespace fusedrnn::cpu

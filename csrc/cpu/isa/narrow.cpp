// Which tables of narrow products this machine can run.
#include "cpu/isa/amx.h"
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fusedrnn::cpu {

#if defined(__x86_64__)
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAvxVnni = 1u << 4;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvxVnni);
}
#endif

const Narrow* narrow_of(DType dtype, int lanes) {
  const bool low = dtype == DType::kBFloat16;
  if (!low && dtype != DType::kInt8) return nullptr;
#if defined(__x86_64__)
  if (lanes == 16 && low) {
    if (!__builtin_cpu_supports("avx512bf16")) return nullptr;
    return may_use_amx() ? &amxbf16::table() : &avx512bf16::table();
  }
  if (lanes == 16) {
    if (!__builtin_cpu_supports("avx512vnni")) return &avx512int8::table();
    return may_use_amx() ? &amxint8::table() : &avx512vnni::table();
  }
  if (lanes == 8 && !low) return has_avx_vnni() ? &avxvnni::table() : &avx2int8::table();
#endif
  if (lanes == 4 && !low) return &int8::table();
  return nullptr;
}

}  // namespace fusedrnn::cpu

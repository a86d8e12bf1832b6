// Which tables of narrow products this machine can run.
#include "cpu/isa/narrow_tables.h"

namespace fusedrnn::cpu {
namespace {

#if defined(__x86_64__)
bool has(const char* set) {
  const auto is = [&](const char* name) { return std::strcmp(set, name) == 0; };
  if (is("avx512bf16")) return __builtin_cpu_supports("avx512bf16");
  if (is("avx512vnni")) return __builtin_cpu_supports("avx512vnni");
  return false;
}
#endif

}  // namespace

const Narrow* narrow_of(DType dtype, int lanes) {
  const bool low = dtype == DType::kBFloat16;
  if (!low && dtype != DType::kInt8) return nullptr;
#if defined(__x86_64__)
  if (lanes == 16 && low) return has("avx512bf16") ? &avx512bf16::table() : nullptr;
  if (lanes == 16) return has("avx512vnni") ? &avx512vnni::table() : &avx512int8::table();
  if (lanes == 8 && !low) return &avx2int8::table();
#endif
  if (lanes == 4 && !low) return &int8::table();
  return nullptr;
}

}  // namespace fusedrnn::cpu

// Which tables of narrow products this machine can run.
#include "cpu/isa/amx.h"
#include "cpu/isa/narrow_tables.h"

namespace fusedrnn::cpu {
namespace {

#if defined(__x86_64__)
bool has(const char* set) {
  const auto is = [&](const char* name) { return std::strcmp(set, name) == 0; };
  if (is("avx512bf16")) return __builtin_cpu_supports("avx512bf16");
  if (is("avxvnni")) return __builtin_cpu_supports("avxvnni");
  if (is("avx512vnni")) return __builtin_cpu_supports("avx512vnni");
  return false;
}
#endif

}  // namespace

const Narrow* narrow_of(DType dtype, int lanes) {
  const bool low = dtype == DType::kBFloat16;
  if (!low && dtype != DType::kInt8) return nullptr;
#if defined(__x86_64__)
  if (lanes == 16 && low) {
    if (!has("avx512bf16")) return nullptr;
    return may_use_amx() ? &amxbf16::table() : &avx512bf16::table();
  }
  if (lanes == 16) {
    if (!has("avx512vnni")) return &avx512int8::table();
    return may_use_amx() ? &amxint8::table() : &avx512vnni::table();
  }
  if (lanes == 8 && !low) return has("avxvnni") ? &avxvnni::table() : &avx2int8::table();
#endif
  if (lanes == 4 && !low) return &int8::table();
  return nullptr;
}

}  // namespace fusedrnn::cpu

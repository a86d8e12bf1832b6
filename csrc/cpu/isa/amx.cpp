// Whether AMX may be used.
#include "cpu/isa/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fusedrnn::cpu {

#if defined(__x86_64__) && defined(__linux__)
namespace {

bool machine_has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kSavesState = 1u << 27;  // OSXSAVE: the system says which registers it keeps
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSavesState)) return false;
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBFloat16 | kTiles | kInt8;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  constexpr unsigned kTileStates = 3u << 17;  // their shapes and their contents
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileStates) == kTileStates;
}

// Holds for all threads of the process, and for its children. Linux refuses where it is older than
// 5.16, or a thread's stack for signals is too small for what it would keep there.
bool system_permits_amx() {
  constexpr int kAskForState = 0x1023, kTileContents = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kAskForState, kTileContents) == 0;
}

}  // namespace

bool may_use_amx() {
  static const bool may = machine_has_amx() && system_permits_amx();
  return may;
}
#else
bool may_use_amx() { return false; }
#endif

}  // namespace fusedrnn::cpu

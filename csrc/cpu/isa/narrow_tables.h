// The tables of narrow products, each in a source of its own.
#pragma once

#include "cpu/isa/variants.h"
#include "cpu/narrow.h"

#define FUSEDRNN_NARROW_TABLE(set) \
  namespace fusedrnn::cpu::set {   \
  const Narrow& table();           \
  }

FUSEDRNN_NARROW_TABLE(int8)
#if defined(__x86_64__)
FUSEDRNN_NARROW_TABLE(avx2int8)
FUSEDRNN_NARROW_TABLE(avxvnni)
FUSEDRNN_NARROW_TABLE(avx512int8)
FUSEDRNN_NARROW_TABLE(avx512vnni)
FUSEDRNN_NARROW_TABLE(avx512bf16)
FUSEDRNN_NARROW_TABLE(amxint8)
FUSEDRNN_NARROW_TABLE(amxbf16)

namespace fusedrnn::cpu {
// By the processor's own word: Clang before 16 has no name for it to ask by.
bool has_avx_vnni();
}  // namespace fusedrnn::cpu
#endif

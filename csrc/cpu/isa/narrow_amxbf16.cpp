// bfloat16 by AMX. Two bfloat16 of a word are added to two sums, which are added at the end of 16
// words: so a result differs in its last bits from AVX512-BF16's.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#ifndef __clang__
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC's own intrinsics, as in kernels_avx512
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define FUSEDRNN_ISA amxbf16
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#include "cpu/isa/narrow_amx_formats.h"

namespace fusedrnn::cpu::amxbf16 {

const Narrow& table() {
  static const Narrow kTable =
      tile_table<TilesOfBFloat16<Tiles>>("amx_bf16", DType::kBFloat16, avx512bf16::table());
  return kTable;
}

}  // namespace fusedrnn::cpu::amxbf16
FUSEDRNN_END_TARGET

#endif

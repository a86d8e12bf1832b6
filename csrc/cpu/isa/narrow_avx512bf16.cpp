// bfloat16 by AVX512-BF16: x86-64 servers from Cooper Lake (2020) and Zen 4 (2022) on.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16")
#ifndef __clang__
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC's own intrinsics, as in kernels_avx512
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define FUSEDRNN_ISA avx512bf16
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#include "cpu/isa/narrow_bf16.h"

namespace fusedrnn::cpu::avx512bf16 {

const Narrow& table() {
  static const Narrow kTable =
      table<BFloat16Words>("avx512_bf16", DType::kBFloat16, rounded_rows, pair_rows);
  return kTable;
}

}  // namespace fusedrnn::cpu::avx512bf16
FUSEDRNN_END_TARGET

#endif

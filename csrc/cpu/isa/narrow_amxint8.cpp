// int8 by AMX.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#ifndef __clang__
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC's own intrinsics, as in kernels_avx512
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define FUSEDRNN_ISA amxint8
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#include "cpu/isa/narrow_amx_formats.h"

namespace fusedrnn::cpu::amxint8 {

const Narrow& table() {
  static const Narrow kTable =
      tile_table<TilesOfInt8<Tiles>>("amx_int8", DType::kInt8, avx512vnni::table());
  return kTable;
}

}  // namespace fusedrnn::cpu::amxint8
FUSEDRNN_END_TARGET

#endif

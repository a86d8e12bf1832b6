// int8 by AVX512-VNNI: x86-64 servers from Cascade Lake (2019) and Zen 4 (2022) on.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")
#ifndef __clang__
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC's own intrinsics, as in kernels_avx512
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define FUSEDRNN_ISA avx512vnni
#define FUSEDRNN_NARROW_NAME "avx512_vnni"
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#define FUSEDRNN_DPBUSD(sums, a, w) \
  Words(_mm512_dpbusd_epi32(__m512i(sums), __m512i(a), __m512i(w)))
#include "cpu/isa/narrow_vnni.h"
FUSEDRNN_END_TARGET

#endif

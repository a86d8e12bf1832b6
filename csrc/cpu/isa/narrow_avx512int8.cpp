// int8 by AVX-512 without VNNI: Skylake-SP (2017).
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#ifndef __clang__
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // GCC's own intrinsics, as in kernels_avx512
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define FUSEDRNN_ISA avx512int8
#define FUSEDRNN_NARROW_NAME "avx512_int8"
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#include "cpu/isa/narrow_int8_signs.h"
FUSEDRNN_END_TARGET

#endif

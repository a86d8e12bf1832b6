// int8 by AVX-512 without VNNI, for a machine without AVX-512: the shipped source on instructions
// computed lane by lane. Part of int8_test.cpp.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma")
#include "by_lane_avx512.h"
#include "by_lane_int8.h"

#define FUSEDRNN_ISA emulated_avx512int8
#define FUSEDRNN_NARROW_NAME "avx512_int8, emulated"
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x)
#include "cpu/isa/narrow_int8_signs.h"
FUSEDRNN_END_TARGET
#endif

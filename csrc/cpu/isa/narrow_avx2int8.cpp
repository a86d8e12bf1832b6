// int8 by AVX2: x86-64 from Haswell (2013) and Zen (2017) on.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma")

#define FUSEDRNN_ISA avx2int8
#define FUSEDRNN_NARROW_NAME "avx2_int8"
#define FUSEDRNN_VECTOR_BYTES 32
#define FUSEDRNN_KEEP(x) asm("" : "+x"(x))
#include "cpu/isa/narrow_int8_signs.h"
FUSEDRNN_END_TARGET

#endif

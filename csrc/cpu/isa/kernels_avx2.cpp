// AVX2 with FMA: x86-64 from Haswell (2013) and Zen (2017) on.
#include "cpu/isa/variants.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma")

#define FUSEDRNN_ISA avx2
#define FUSEDRNN_VECTOR_BYTES 32
#define FUSEDRNN_KEEP(x) asm("" : "+x"(x))
#include "cpu/isa/kernels.h"
FUSEDRNN_END_TARGET

#endif

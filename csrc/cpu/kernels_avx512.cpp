// AVX-512: x86-64 servers from Skylake-SP (2017) and Zen 4 (2022) on.
#include "cpu/variants.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")

#define FUSEDRNN_ISA avx512
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#include "cpu/kernels.h"

#endif

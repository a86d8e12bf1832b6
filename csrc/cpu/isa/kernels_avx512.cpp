// AVX-512: x86-64 servers from Skylake-SP (2017) and Zen 4 (2022) on.
#include "cpu/isa/variants.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")

#ifndef __clang__
// Clang prefers the widest vectors by itself, and knows no such target.
#pragma GCC target("prefer-vector-width=512")
// GCC's own intrinsics start from a register that they call undefined, and it warns of that.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define FUSEDRNN_ISA avx512
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x) asm("" : "+v"(x))
#include "cpu/isa/kernels.h"
FUSEDRNN_END_TARGET

#endif

// The variant every machine can run: SSE2 on x86-64, NEON on arm64.
#include "cpu/isa/variants.h"

#define FUSEDRNN_ISA baseline
#define FUSEDRNN_VECTOR_BYTES 16
#if defined(__x86_64__)
#define FUSEDRNN_KEEP(x) asm("" : "+x"(x))
#elif defined(__aarch64__)
#define FUSEDRNN_KEEP(x) asm("" : "+w"(x))
#else
#define FUSEDRNN_KEEP(x)
#endif
#include "cpu/isa/kernels.h"

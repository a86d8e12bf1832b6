// int8 for every machine: SSE2 on x86-64, NEON on arm64.
#include "cpu/isa/narrow_tables.h"

#define FUSEDRNN_ISA int8
#define FUSEDRNN_NARROW_NAME "int8"
#define FUSEDRNN_VECTOR_BYTES 16
#if defined(__x86_64__)
#define FUSEDRNN_KEEP(x) asm("" : "+x"(x))
#elif defined(__aarch64__)
#define FUSEDRNN_KEEP(x) asm("" : "+w"(x))
#else
#define FUSEDRNN_KEEP(x)
#endif
#include "cpu/isa/narrow_int8_pairs.h"

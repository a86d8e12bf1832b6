// The AVX-512 variant's own source on a machine that has none, linked in place of the baseline: its
// vectors, tiles, masks and reciprocal, each of the instructions that it names computed lane by
// lane. What is not shown so is that the compiler and the CPU mean the same by those instructions.
#include "cpu/isa/variants.h"

FUSEDRNN_BEGIN_TARGET("avx2,fma")

#include "by_lane_avx512.h"

#define FUSEDRNN_ISA baseline
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x)  // no register would hold it
#define FUSEDRNN_BY_LANE  // nor the operands of an instruction that has no intrinsic
#include "cpu/isa/kernels.h"
FUSEDRNN_END_TARGET

// int8 by AVX-VNNI: x86-64 without AVX-512 from Alder Lake (2021) on.
#include "cpu/isa/narrow_tables.h"

#if defined(__x86_64__)
FUSEDRNN_BEGIN_TARGET("avx2,fma,avxvnni")

#define FUSEDRNN_ISA avxvnni
#define FUSEDRNN_NARROW_NAME "avx_vnni"
#define FUSEDRNN_VECTOR_BYTES 32
#define FUSEDRNN_KEEP(x) asm("" : "+x"(x))
#define FUSEDRNN_DPBUSD(sums, a, w) \
  Words(_mm256_dpbusd_avx_epi32(__m256i(sums), __m256i(a), __m256i(w)))
#include "cpu/isa/narrow_vnni.h"
FUSEDRNN_END_TARGET

#endif

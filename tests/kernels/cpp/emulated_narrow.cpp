// AVX512-BF16 and AMX for a machine without them: linked in place of isa/narrow.cpp, whose tables
// of bfloat16 are those of the shipped sources on instructions computed lane by lane. EMULATED
// names one of the two.
#include <cstdlib>

#include "cpu/isa/variants.h"
#include "emulated_tiles.h"

FUSEDRNN_BEGIN_TARGET("avx2,fma")
#include "by_lane_avx512.h"
#include "by_lane_bf16.h"

#define FUSEDRNN_ISA emulated_narrow
#define FUSEDRNN_VECTOR_BYTES 64
#define FUSEDRNN_KEEP(x)
#define FUSEDRNN_BY_LANE
#include "cpu/isa/narrow_amx_formats.h"
#include "cpu/isa/narrow_bf16.h"

namespace fusedrnn::cpu {

const Narrow* narrow_of(DType dtype, int lanes) {
  using namespace emulated_narrow;
  static const Narrow words =
      table<BFloat16Words>("avx512_bf16", DType::kBFloat16, rounded_rows, pair_rows);
  static const Narrow tiles =
      tile_table<TilesOfBFloat16<emulated::Tiles>>("amx_bf16", DType::kBFloat16, words);
  if (dtype != DType::kBFloat16 || lanes != words.lanes) return nullptr;
  const char* const wanted = std::getenv("EMULATED");
  return wanted && std::strcmp(wanted, tiles.name) == 0 ? &tiles : &words;
}

}  // namespace fusedrnn::cpu
FUSEDRNN_END_TARGET

// Tile registers: of Intel's servers from Sapphire Rapids (2023) on. By assembler, because a tile's
// number stands in the instruction and GCC's intrinsics want it as a digit, which no template has.
//
// The operating system has to be asked for the room that they take when threads are switched. They
// are set up anew for every product and given back after it, so that nobody else's use of them,
// such as oneDNN's in the same thread, is in the way.
#pragma once

#include <cstdint>

namespace fusedrnn::cpu {

// Whether this machine has tiles of bfloat16 and int8 and the operating system lets this process
// use them. Asks it the first time.
bool may_use_amx();

// What a register holds: rows of bytes. At most 16 of 64. Zeros: nothing.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

#if defined(__x86_64__)
namespace {  // compiled for several machines: see simd.h

// The registers of this machine.
struct Tiles {
  static void set_up(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
  static void give_back() { asm volatile("tilerelease"); }
  template <int kTile>
  static void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // Rows lie `stride` bytes apart.
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // C += A . B of words of two bfloat16, and of four int8, those of A unsigned.
  template <int kC, int kA, int kB>
  static void add_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  static void add_int8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

}  // namespace
#endif

}  // namespace fusedrnn::cpu

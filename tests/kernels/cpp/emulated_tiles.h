// Tile registers of a machine that has none, by the pseudocode of Intel's manual. What is not shown
// so is that the assembler and the CPU mean the same by the instructions of isa/amx.h.
#pragma once

#include <cassert>
#include <cstdint>
#include <cstring>

#include "cpu/isa/amx.h"

namespace emulated {

inline float upper_half(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

struct Tile {
  int rows = 0, row_bytes = 0;
  uint8_t bytes[16][64] = {};
  uint32_t word(int r, int i) const {
    uint32_t x;
    std::memcpy(&x, bytes[r] + i * 4, 4);
    return x;
  }
};

struct Tiles {
  static inline thread_local Tile tiles[8];
  static inline thread_local bool set = false;

  static void set_up(const fusedrnn::cpu::TileShapes& shapes) {
    for (int i = 0; i < 8; ++i) {
      // A register has both or neither, and 16 rows of 64 bytes at the most, or the CPU faults.
      assert((shapes.rows[i] == 0) == (shapes.row_bytes[i] == 0));
      assert(shapes.rows[i] <= 16 && shapes.row_bytes[i] <= 64);
      tiles[i] = {shapes.rows[i], shapes.row_bytes[i], {}};
    }
    set = true;
  }
  static void give_back() { set = false; }
  static Tile& at(int i) {
    assert(set && tiles[i].rows > 0);
    return tiles[i];
  }
  template <int kTile>
  static void clear() {
    std::memset(at(kTile).bytes, 0, sizeof(Tile::bytes));
  }
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    Tile& tile = at(kTile);
    std::memset(tile.bytes, 0, sizeof tile.bytes);
    for (int r = 0; r < tile.rows; ++r) {
      std::memcpy(tile.bytes[r], static_cast<const char*>(from) + r * stride, tile.row_bytes);
    }
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    const Tile& tile = at(kTile);
    for (int r = 0; r < tile.rows; ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, tile.bytes[r], tile.row_bytes);
    }
  }

  // The shapes that an instruction wants; it faults otherwise.
  static void check(const Tile& c, const Tile& a, const Tile& b) {
    assert(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == b.rows * 4);
  }
  template <int kC, int kA, int kB>
  static void add_bfloat16() {
    Tile& c = at(kC);
    const Tile &a = at(kA), &b = at(kB);
    check(c, a, b);
    for (int r = 0; r < c.rows; ++r) {
      for (int n = 0; n < c.row_bytes / 4; ++n) {
        float sums[2] = {0, 0};
        for (int k = 0; k < b.rows; ++k) {
          for (int half = 0; half < 2; ++half) {
            sums[half] =
                __builtin_fmaf(upper_half(uint16_t(a.word(r, k) >> 16 * half)),
                               upper_half(uint16_t(b.word(k, n) >> 16 * half)), sums[half]);
          }
        }
        float sum;
        std::memcpy(&sum, c.bytes[r] + n * 4, 4);
        sum += sums[0] + sums[1];
        std::memcpy(c.bytes[r] + n * 4, &sum, 4);
      }
    }
  }
  template <int kC, int kA, int kB>
  static void add_int8() {
    Tile& c = at(kC);
    const Tile &a = at(kA), &b = at(kB);
    check(c, a, b);
    for (int r = 0; r < c.rows; ++r) {
      for (int n = 0; n < c.row_bytes / 4; ++n) {
        int32_t sum;
        std::memcpy(&sum, c.bytes[r] + n * 4, 4);
        for (int k = 0; k < b.rows * 4; ++k) {
          sum += int(a.bytes[r][k]) * int(int8_t(b.bytes[k / 4][n * 4 + k % 4]));
        }
        std::memcpy(c.bytes[r] + n * 4, &sum, 4);
      }
    }
  }
};

}  // namespace emulated

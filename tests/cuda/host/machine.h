// What the scheduler keeps of a cluster that runs: its fibers, the gates they wait at, its blocks
// and what is on its way between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "fiber.h"
#include "shim.h"

namespace fusedrnn::shim {

constexpr int kWarp = 32;
constexpr int64_t kGuard = 128;  // bytes on either side of shared memory
constexpr unsigned char kGuardByte = 0xa5;
constexpr int kTokens = 16;

struct alignas(8) Token {  // an address for ThreadSanitizer
  char bytes[8];
};

struct Block;
struct Fiber {
  Self self{};
  Stack stack;
  unsigned char* memory = nullptr;
  Block* block = nullptr;
  Fiber* next = nullptr;              // among those that wait for the same
  const uint64_t* awaited = nullptr;  // in Block::awaiting
  const char* doing = "";
  Site site;
  bool starved = false, ended = false;
};

// Lets n fibers go on once all have come.
struct Gate {
  int arrived = 0;
  unsigned generation = 0;
  Fiber* waiting = nullptr;
  Token tokens[2];
};

struct Warp {
  Gate gate;
  float values[2][kWarp];
  int lanes = 0;  // of those at the current shuffle or barrier
  int mask = 0;
  Site site;
};

struct Block {
  unsigned char* memory = nullptr;
  int live = 0;
  Gate gate;
  std::vector<Warp> warps;
  Fiber* awaiting = nullptr;
  Token tokens[kTokens][2];
};

// In the 8 bytes of a barrier in shared memory.
struct Phase {
  int32_t bytes;  // armed for, less those arrived
  int16_t pending;
  uint8_t parity, magic;
};
constexpr uint8_t kMagic = 0xb7;
static_assert(sizeof(Phase) == sizeof(uint64_t));

struct Message {
  float* to;
  float values[4];
  int count;
  uint64_t* barrier;
  Block* target;
  Site site;
};

// Floats that may be prefetched, and which were.
struct Prefetched {
  const float* first;
  std::vector<bool> done;
};

class Queue {
 public:
  void reset(size_t most) {
    fibers_.assign(most, nullptr);
    first_ = count_ = 0;
  }
  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }
  void push(Fiber* fiber) { at(count_++) = fiber; }
  Fiber* pop(size_t position) {
    std::swap(at(0), at(position));
    Fiber* fiber = at(0);
    first_ = (first_ + 1) % fibers_.size();
    --count_;
    return fiber;
  }

 private:
  Fiber*& at(size_t i) { return fibers_[(first_ + i) % fibers_.size()]; }
  std::vector<Fiber*> fibers_;
  size_t first_ = 0, count_ = 0;
};

}  // namespace fusedrnn::shim

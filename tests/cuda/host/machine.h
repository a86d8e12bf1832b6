// What the shim keeps of a cluster that runs: its fibers, the gates they wait at, its blocks and
// what is on its way between them. And what its parts ask of each other: launch.cpp starts the
// fibers, instructions.cpp is what they call, scheduler.cpp decides who goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
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

struct Machine {
  std::mutex mutex;
  Schedule schedule;
  bool scheduled = false, shuffle_orders = true;
  uint64_t random = 0;
  void (*body)(const void*) = nullptr;
  const void* call = nullptr;
  Grid grid{};

  std::vector<Fiber*> pool;
  std::vector<Fiber*> fibers;  // of the cluster that runs
  std::vector<Block> blocks;
  std::vector<unsigned char*> memories;
  Gate gate;
  int live = 0;
  Queue ready, starved;
  std::vector<Message> sent;
  bool sent_starved = false;
  std::vector<Prefetched> prefetched;
  Stack main;
  Fiber* current = nullptr;
  Token begin, end;
};
extern Machine& machine;

inline bool watches_threads() { return __tsan_create_fiber != nullptr; }

// Ends the program: who did what and where.
[[noreturn, gnu::format(printf, 2, 3)]] void fail(const Site& site, const char* format, ...);

size_t chance(size_t n);  // below n, as the schedule's seed has it
void make_ready(Fiber* fiber);
Fiber* choose();  // who goes on
void switch_to(Fiber* to, Stack& from, bool ends);
// Until another fiber makes this one ready.
void give_way(const char* doing, const Site& site);
// Through a gate for n; `orders` memory for ThreadSanitizer.
void pass(Gate& gate, int n, bool orders, const char* doing, const Site& site);
// A phase of a barrier ends when it has been armed and all its bytes are there.
void settle(uint64_t* barrier, Block& block, const Site& site);
void deliver(const Message& message);

}  // namespace fusedrnn::shim

// Where the CPU operators' large tensors lie. What the first touch of memory costs, the system's
// zeroing of its pages, is a fifth of a training step at worst (LSTM T200 B64 H128 L2: 98 ms, and
// 125 when malloc has given the pages of the last step back). So pages are huge where the system
// grants them, and blocks that only layers see are kept for the next call.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <mutex>
#include <vector>

namespace fusedrnn::ops {

constexpr size_t kLargeBytes = size_t(4) << 20;    // below, malloc mostly has memory in use before
constexpr size_t kMappedBytes = size_t(32) << 20;  // above, glibc's malloc never has
constexpr size_t kHugeBytes = size_t(64) << 20;
constexpr size_t kSmallPage = size_t(64) << 10;  // a multiple of the system's page, on all of them

inline void advise(void* data, size_t bytes, size_t page, int advice) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  advise(data, bytes, size_t(2) << 20, MADV_HUGEPAGE);
#endif
}

// Blocks that were given back, the latest last. Of those that malloc would have returned to the
// system, it may take the pages meanwhile (smaller ones are in small pages, whose marking as dirty
// again would cost a hundredth of a step).
class KeptBlocks {
 public:
  struct Block {
    void* data;
    size_t bytes;
  };

  // Never destroyed: tensors may outlive what is static.
  static KeptBlocks& instance() {
    static auto* const blocks = new KeptBlocks;
    return *blocks;
  }

  static bool keeps(size_t bytes) { return bytes <= kMostBytes; }

  // The smallest that has room and is not wasted on so few bytes; without data if there is none.
  Block take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    auto best = blocks_.end();
    for (auto i = blocks_.begin(); i != blocks_.end(); ++i) {
      const bool fits = bytes <= i->bytes && i->bytes <= 2 * bytes;
      if (fits && (best == blocks_.end() || i->bytes < best->bytes)) best = i;
    }
    if (best == blocks_.end()) return {};
    const Block block = *best;
    blocks_.erase(best);
    return block;
  }

  void give(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || !keeps(block.bytes)) return c10::free_cpu(block.data);
#ifdef MADV_FREE
    if (block.bytes >= kMappedBytes) advise(block.data, block.bytes, kSmallPage, MADV_FREE);
#endif
    blocks_.push_back(block);
    shrink(kMostBytes);
  }

  void clear() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) shrink(0);
  }

 private:
  static constexpr size_t kMostBytes = size_t(256) << 20;

  void shrink(size_t most) {
    size_t all = 0;
    for (const Block& block : blocks_) all += block.bytes;
    auto end = blocks_.begin();
    for (; all > most; ++end) {
      all -= end->bytes;
      c10::free_cpu(end->data);
    }
    blocks_.erase(blocks_.begin(), end);
  }

  // Tried, never waited for: a forked child may find it held by a thread it does not have.
  std::mutex mutex_;
  std::vector<Block> blocks_;
};

// For tensors of which everything is written; a huge page is taken whole. Not for very large ones:
// the system makes room for so many by moving what lies between, call after call (LSTM T500 B256
// H512 inference between calls of torch.nn: 0.5 to 0.6 s of the system's time, 0.2 in small pages).
inline at::Tensor in_huge_pages(at::Tensor tensor, size_t least = kLargeBytes) {
  if (tensor.defined() && tensor.nbytes() >= least && tensor.nbytes() <= kHugeBytes) {
    advise_huge_pages(tensor.data_ptr(), tensor.nbytes());
  }
  return tensor;
}

// A workspace, of which a part may stay untouched: that is not to be taken, where it would count.
inline at::Tensor workspace_of(int64_t bytes, const at::TensorOptions& options) {
  return in_huge_pages(at::empty({bytes}, options.dtype(at::kByte)), kMappedBytes);
}

// Memory that only layers see, from one pass to the other.
inline at::Tensor reused_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (bytes < kLargeBytes) return at::empty(sizes, options);
  KeptBlocks& kept = KeptBlocks::instance();
  KeptBlocks::Block block = kept.take(bytes);
  if (!block.data) {
    try {
      block = {c10::alloc_cpu(bytes), bytes};
    } catch (const c10::Error&) {
      kept.clear();
      block = {c10::alloc_cpu(bytes), bytes};
    }
    if (KeptBlocks::keeps(bytes)) advise_huge_pages(block.data, bytes);
  }
  return at::from_blob(
      block.data, sizes, [block](void*) { KeptBlocks::instance().give(block); }, options);
}

}  // namespace fusedrnn::ops

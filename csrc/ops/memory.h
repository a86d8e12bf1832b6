// Memory for the CPU operators' large tensors. The system zeroes every page at its first touch,
// which costs up to a fifth of a training step (LSTM T200 B64 H128 L2: 98 ms, but 125 if malloc has
// returned the last step's pages to the system). So large tensors ask for huge pages, and blocks
// that only the layers see are kept for the next call.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <mutex>
#include <vector>

namespace fusedrnn::ops {

constexpr size_t kLargeBytes = size_t(4) << 20;    // smaller: malloc mostly reuses touched pages
constexpr size_t kMappedBytes = size_t(32) << 20;  // larger: glibc's malloc always maps new pages
constexpr size_t kHugeBytes = size_t(64) << 20;    // larger: no huge pages, see in_huge_pages
constexpr size_t kSmallPage = size_t(64) << 10;    // a multiple of every system's page size

// Calls madvise on the whole pages of `page` bytes within the block.
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

// Freed blocks, kept for the next call, the latest last. Blocks of 32 MiB and more, which malloc
// would have returned to the system, are marked MADV_FREE, so the system may reclaim their pages.
// Smaller ones are not: dirtying their many small pages again would cost 1 % of a step.
class KeptBlocks {
 public:
  struct Block {
    void* data;
    size_t bytes;
  };

  // Never destroyed, because tensors may outlive static objects.
  static KeptBlocks& instance() {
    static auto* const blocks = new KeptBlocks;
    return *blocks;
  }

  static bool keeps(size_t bytes) { return bytes <= kMostBytes; }

  // The smallest block that fits and is at most twice as large; null data if there is none.
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

  // Taken by try_lock only. A forked child may find it held by a thread that only its parent has.
  std::mutex mutex_;
  std::vector<Block> blocks_;
};

// Asks for huge pages. Only for tensors that are written entirely, because a huge page is taken
// whole. Above kHugeBytes small pages are faster: to make room for so many huge ones the system
// moves other memory in every call (LSTM T500 B256 H512 inference, in turn with torch.nn: 0.5 to
// 0.6 s of system time, 0.2 in small pages).
inline at::Tensor in_huge_pages(at::Tensor tensor, size_t least = kLargeBytes) {
  if (tensor.defined() && tensor.is_cpu() && tensor.nbytes() >= least &&
      tensor.nbytes() <= kHugeBytes) {
    advise_huge_pages(tensor.data_ptr(), tensor.nbytes());
  }
  return tensor;
}

// Workspaces may be partly unused, so huge pages are requested only from 32 MiB up.
inline at::Tensor workspace_of(int64_t bytes, const at::TensorOptions& options) {
  return in_huge_pages(at::empty({bytes}, options.dtype(at::kByte)), kMappedBytes);
}

// A tensor that only the layers see, such as the reserve: its block is kept for the next call. On
// another device torch's allocator does that.
inline at::Tensor reused_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (bytes < kLargeBytes || !options.device().is_cpu()) return at::empty(sizes, options);
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

// Memory with an end: while guard_pages(1) holds, every block that torch's allocator takes (it asks
// posix_memalign) has its last byte before a page that nobody may touch; with guard_pages(2) its
// first byte behind one. So an access beyond a tensor, a reserve or a workspace, however short,
// kills the process, as does one after the block was freed: no address is given out twice. A block
// begins as bytes 0xff, nan in every floating type, so that what is read before it is written
// shows. Preloaded, not an allocator for torch: that would be compiled against torch's headers.
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>

extern "C" void* __libc_memalign(size_t alignment, size_t size);
extern "C" void __libc_free(void* block);

namespace {

constexpr size_t kPage = 4096, kRegion = size_t(4) << 40;  // addresses only, until they are used
std::atomic<int> side{0};
std::atomic<size_t> used{0};
std::atomic<long> guarded{0};
char* region = nullptr;
uint32_t* pages_of;  // by the page a block begins in

void* reserve(void* at, size_t size, int protection, int flags) {
  return mmap(at, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

}  // namespace

// 0: as ever; 1: guard the ends; 2: guard the beginnings. Returns how many blocks were guarded.
extern "C" long guard_pages(int wanted) {
  if (!region) {
    const size_t table = kRegion / kPage * sizeof(uint32_t);
    void* pages = reserve(nullptr, table, PROT_READ | PROT_WRITE, 0);
    void* addresses = reserve(nullptr, kRegion, PROT_NONE, 0);
    if (pages == MAP_FAILED || addresses == MAP_FAILED) return -1;
    pages_of = static_cast<uint32_t*>(pages);
    region = static_cast<char*>(addresses);
  }
  side = wanted;
  return guarded;
}

extern "C" int posix_memalign(void** block, size_t alignment, size_t size) noexcept {
  if (side == 0 || size == 0) {
    *block = __libc_memalign(alignment, size);
    return *block ? 0 : ENOMEM;
  }
  const size_t pages = (size + kPage - 1) / kPage, at = used.fetch_add((pages + 1) * kPage) + kPage;
  char* first = region + at;
  if (at + (pages + 1) * kPage > kRegion ||
      mprotect(first, pages * kPage, PROT_READ | PROT_WRITE) != 0) {
    return ENOMEM;
  }
  std::memset(first, 0xff, pages * kPage);
  pages_of[at / kPage] = uint32_t(pages);
  ++guarded;
  // Less aligned than asked for, where the size is: of a tensor no more is promised than its
  // element's alignment, and a workspace is a multiple of 64 bytes.
  *block = side == 1 ? first + pages * kPage - size : first;
  return 0;
}

extern "C" void free(void* block) noexcept {
  const size_t at = size_t(static_cast<char*>(block) - region);
  if (!region || block < region || at >= kRegion) {
    __libc_free(block);
    return;
  }
  // Mapped anew, not protected: neighbours then join, and a process may have 65,530 mappings.
  reserve(region + at / kPage * kPage, pages_of[at / kPage] * kPage, PROT_NONE, MAP_FIXED);
}

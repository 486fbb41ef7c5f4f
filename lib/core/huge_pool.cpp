// SPDX-License-Identifier: Apache-2.0
#include "lib/core/huge_pool.h"

#include <sys/mman.h>
#include <cstdint>
#include <mutex>
#include <new>
#include <unordered_map>

// Address and thread sanitizers watch single allocations.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MILLION_NO_POOL 1
#else
#define MILLION_NO_POOL 0
#endif

namespace million {
namespace {

constexpr std::size_t kSlab = std::size_t{2} << 20, kLine = 64;

void* on_huge_pages(std::size_t bytes) {
  void* p = ::operator new(bytes, std::align_val_t(kSlab));
  madvise(p, bytes / kSlab * kSlab, MADV_HUGEPAGE);  // a hint; without it all works, too
  return p;
}

/// Starts a slab; its blocks follow. Slabs of one size with room form a list.
struct alignas(kLine) Slab {
  Slab *next = nullptr, *previous = nullptr;
  std::size_t n_live = 0, n_carved = 0;
  void* free_list = nullptr;  ///< a free block holds the address of the next
};

class Pool {
 public:
  void* take(std::size_t bytes) {
    const std::size_t size = rounded(bytes);
    std::lock_guard lock(mutex_);
    Slab*& open = open_[size];
    if (!open) open = new (on_huge_pages(kSlab)) Slab;
    Slab* slab = open;
    char* block = static_cast<char*>(slab->free_list);
    if (block)
      slab->free_list = *reinterpret_cast<void**>(block);
    else
      block = reinterpret_cast<char*>(slab + 1) + slab->n_carved++ * size;
    ++slab->n_live;
    if (is_full(*slab, size)) unlink(open, slab);
    return block;
  }

  void give(void* p, std::size_t bytes) noexcept {
    const std::size_t size = rounded(bytes);
    auto* slab = reinterpret_cast<Slab*>(reinterpret_cast<std::uintptr_t>(p) & ~(kSlab - 1));
    std::lock_guard lock(mutex_);
    Slab*& open = open_.find(size)->second;
    const bool was_full = is_full(*slab, size);
    *static_cast<void**>(p) = slab->free_list;
    slab->free_list = p;
    if (was_full) {
      slab->next = open;
      if (open) open->previous = slab;
      open = slab;
    }
    if (--slab->n_live > 0) return;
    unlink(open, slab);
    ::operator delete(slab, std::align_val_t(kSlab));
  }

 private:
  static std::size_t rounded(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }
  static bool is_full(const Slab& slab, std::size_t size) {
    return !slab.free_list && slab.n_carved == (kSlab - sizeof(Slab)) / size;
  }
  static void unlink(Slab*& open, Slab* slab) {
    (slab->previous ? slab->previous->next : open) = slab->next;
    if (slab->next) slab->next->previous = slab->previous;
    slab->next = slab->previous = nullptr;
  }

  std::mutex mutex_;
  std::unordered_map<std::size_t, Slab*> open_;  ///< by size
};

/// Never destroyed: static objects may free blocks after it.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

bool pooled(std::size_t bytes) {
  return !MILLION_NO_POOL && bytes >= kPooledLeast && bytes <= kPooledMost;
}
bool large(std::size_t bytes) { return !MILLION_NO_POOL && bytes >= kSlab; }

}  // namespace

void* huge_allocate(std::size_t bytes) {
  if (pooled(bytes)) return pool().take(bytes);
  if (large(bytes)) return on_huge_pages(bytes);
  return ::operator new(bytes, std::align_val_t(kLine));
}

void huge_free(void* p, std::size_t bytes) noexcept {
  if (pooled(bytes)) return pool().give(p, bytes);
  ::operator delete(p, std::align_val_t(large(bytes) ? kSlab : kLine));
}

}  // namespace million

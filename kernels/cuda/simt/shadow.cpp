// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/simt/shadow.h"

#include "kernels/cuda/simt/runtime.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <set>
#include <utility>

namespace simt {

Report report;

namespace {

void print_finding(const Finding& f) {
  std::fprintf(stderr,
               "simt race checker: %s at shared memory + %zu, block %u,%u,%u: "
               "thread %u (%p)",
               f.what, f.offset, f.block[0], f.block[1], f.block[2], f.thread, f.code);
  if (f.other_code) std::fprintf(stderr, ", thread %u (%p)", f.other_thread, f.other_code);
  std::fputc('\n', stderr);
}

struct Findings {
  std::mutex mutex;
  std::set<std::pair<const void*, const void*>> seen;
  FindingSink sink = print_finding;
};
Findings& findings() {
  static Findings all;
  return all;
}

void add_finding(std::atomic<unsigned>& counter, const char* what, std::size_t offset,
                 const Fiber& me, const void* code, unsigned other, const void* other_code) {
  Findings& all = findings();
  const std::lock_guard lock(all.mutex);
  if (!all.seen.insert({code, other_code}).second) return;
  ++counter;
  const dim3 b = blk->bid;
  all.sink({what, offset, {b.x, b.y, b.z}, me.linear, other, code, other_code});
}

}  // namespace

void clear_report() {
  const std::lock_guard lock(findings().mutex);
  findings().seen.clear();
  report.races = report.uninit = report.oob = 0;
}

void set_finding_sink(FindingSink sink) {
  const std::lock_guard lock(findings().mutex);
  findings().sink = sink;
}

void note_access(const void* p, std::size_t bytes, Access access, const void* code) {
  if (!cur || !worker->shadow) return;
  // Unsigned: what lies before shared memory is far behind it.
  const std::size_t offset = static_cast<std::size_t>(reinterpret_cast<uintptr_t>(p) -
                                                      reinterpret_cast<uintptr_t>(blk->smem));
  if (offset < blk->smem_bytes + kOverrunBytes)
    worker->shadow->access(this_fiber(), offset, bytes, access, code);
}

void note_atomic(const void* p, std::size_t bytes) {
  note_access(p, bytes, Access::kAtomic, __builtin_return_address(0));
}

void Shadow::begin_block(std::size_t bytes, unsigned n_threads) {
  bytes_ = bytes;
  if (cells_.size() < bytes) cells_.resize(bytes, Cell{});
  clocks_.assign((n_threads + kWarp - 1) / kWarp, WarpClock{1, {}});
  first_epoch_ = ++epoch_;
}

void Shadow::sync_warp(unsigned warp, uint32_t mask) {
  WarpClock& clock = clocks_[warp];
  const uint32_t now = ++clock.now;
  uint32_t joined[kWarp] = {};
  for (unsigned l = 0; l < kWarp; ++l) {
    if (!(mask >> l & 1)) continue;
    for (unsigned k = 0; k < kWarp; ++k) joined[k] = std::max(joined[k], clock.known[l][k]);
  }
  for (unsigned l = 0; l < kWarp; ++l)
    if (mask >> l & 1) joined[l] = now;
  for (unsigned l = 0; l < kWarp; ++l)
    if (mask >> l & 1) std::copy(joined, joined + kWarp, clock.known[l]);
}

// Whether what `thread` did in this epoch, at `tick`, came before what `me` does now.
bool Shadow::ordered(const Fiber& me, unsigned thread, uint32_t tick) const {
  if (thread == me.linear) return true;
  return thread / kWarp == me.warp && tick < clocks_[me.warp].known[me.lane][thread % kWarp];
}

// Whether the last write to a cell allows this access.
bool Shadow::check_write(const Fiber& me, const Cell& c, std::size_t at, Access access,
                         const void* code) {
  if (c.pending) {
    if (access == Access::kCopyEnd && c.writer == me.linear) return true;
    add_finding(report.races, "access before the wait for an asynchronous copy", at, me, code,
                c.writer, c.write_code);
    return false;
  }
  if (c.write_epoch < first_epoch_) {
    if (access != Access::kRead && access != Access::kAtomic) return true;
    add_finding(report.uninit, "uninitialised read", at, me, code, 0, nullptr);
    return false;
  }
  if (c.write_epoch != epoch_ || ordered(me, c.writer, c.write_tick)) return true;
  if (access == Access::kAtomic && c.atomic) return true;
  add_finding(report.races, access == Access::kRead ? "read after write" : "write after write", at,
              me, code, c.writer, c.write_code);
  return false;
}

// Whether the reads of a cell since its last write allow a write.
bool Shadow::check_readers(const Fiber& me, const Cell& c, std::size_t at, const void* code) {
  if (c.read_epoch != epoch_ || c.reading_warps == 0) return true;
  bool clean = (c.reading_warps & ~(1u << me.warp)) == 0;
  for (const Readers& group : {c.recent, c.older})
    for (unsigned l = 0; l < kWarp && clean; ++l)
      if (group.lanes >> l & 1) clean = ordered(me, me.warp * kWarp + l, group.tick);
  if (!clean) add_finding(report.races, "write after read", at, me, code, c.reader, c.read_code);
  return clean;
}

void Shadow::record_read(const Fiber& me, Cell& c, const void* code) {
  const uint32_t now = clocks_[me.warp].now, lane = 1u << me.lane;
  if (c.read_epoch != epoch_) c.read_epoch = epoch_, c.reading_warps = 0;
  if (c.reading_warps == 0 || c.reader / kWarp != me.warp) {
    c.recent = {now, lane}, c.older = {};
  } else if (c.recent.tick == now) {
    c.recent.lanes |= lane;
  } else {
    c.older = c.recent;
    c.recent = {now, lane};
  }
  c.reading_warps |= 1u << me.warp;
  c.reader = static_cast<uint16_t>(me.linear);
  c.read_code = code;
}

void Shadow::record_write(const Fiber& me, Cell& c, Access access, const void* code) {
  c.write_epoch = epoch_;
  c.write_tick = clocks_[me.warp].now;
  c.writer = static_cast<uint16_t>(me.linear);
  c.atomic = access == Access::kAtomic;
  c.pending = access == Access::kCopyStart;
  c.write_code = code;
  c.reading_warps = 0;
}

void Shadow::access(const Fiber& me, std::size_t offset, std::size_t bytes, Access access,
                    const void* code) {
  if (offset + bytes > bytes_) {
    add_finding(report.oob, "access behind the end", offset, me, code, 0, nullptr);
    return;
  }
  // One finding an access is enough.
  bool clean = true;
  for (std::size_t at = offset; at < offset + bytes; ++at) {
    Cell& c = cells_[at];
    clean = clean && check_write(me, c, at, access, code);
    if (access == Access::kRead) {
      record_read(me, c, code);
    } else {
      clean = clean && check_readers(me, c, at, code);
      record_write(me, c, access, code);
    }
  }
}

}  // namespace simt

// SPDX-License-Identifier: Apache-2.0
// Launches, the turns of a block's threads, and the block barrier.
#include "kernels/cuda/simt/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>

#if MILLION_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) (void)0
#define ASAN_UNPOISON_MEMORY_REGION(p, n) (void)0
#endif

namespace simt {

constinit thread_local Thread* cur = nullptr;
constinit thread_local Block* blk = nullptr;
constinit thread_local Worker* worker = nullptr;
Options options;

void fail(const char* what) {
  std::fflush(stdout);
  std::fprintf(stderr, "simt: %s", what);
  if (blk) std::fprintf(stderr, " (block %u,%u,%u", blk->bid.x, blk->bid.y, blk->bid.z);
  if (blk && cur) std::fprintf(stderr, " thread %u", cur->linear);
  std::fputs(blk ? ")\n" : "\n", stderr);
  std::abort();
}

// ---- Shared memory ------------------------------------------------------------------------------

namespace {
constexpr std::size_t kAlign = 128;         // as MILLION_SHARED has it
constexpr std::size_t kPage = 64 << 10;     // of any processor
constexpr unsigned char kUnwritten = 0xFF;  // NaN as a half and as a float

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }
}  // namespace

void SharedArena::release() {
  if (!map_) return;
  ASAN_UNPOISON_MEMORY_REGION(map_, capacity_);
  munmap(map_, capacity_ + kPage);
}

unsigned char* SharedArena::clear(std::size_t bytes, bool slack) {
  const std::size_t behind = slack ? kOverrunBytes : 0;
  const std::size_t needed = round_up(bytes, kAlign) + behind;
  if (!map_ || needed > capacity_) {
    release();
    capacity_ = round_up(std::max<std::size_t>(needed, 1), kPage);
    void* p = mmap(nullptr, capacity_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    if (p == MAP_FAILED) fail("no memory for shared memory");
    map_ = static_cast<unsigned char*>(p);
    mprotect(map_ + capacity_, kPage, PROT_NONE);
  }
  limit_ = map_ + capacity_;
  unsigned char* const begin = limit_ - needed;
  end_ = begin + bytes;
  ASAN_UNPOISON_MEMORY_REGION(map_, capacity_);
  std::memset(begin, kUnwritten, needed);
  ASAN_POISON_MEMORY_REGION(end_, limit_ - end_);
  return begin;
}

__attribute__((no_sanitize("address"))) bool SharedArena::end_is_intact() const {
  for (const unsigned char* p = end_; p < limit_; ++p)
    if (*p != kUnwritten) return false;
  return true;
}

// ---- Turns --------------------------------------------------------------------------------------

namespace {

// The life of a CUDA thread. It never returns: see fiber.h.
__attribute__((noinline, no_sanitize("thread"))) void run_thread() {
  Context::entered();
  (*worker->body)();
  worker->finish(this_fiber());
}

// Small steps of Marsaglia's xorshift; the state is never 0.
uint32_t draw(uint32_t& state) {
  state ^= state << 13;
  state ^= state >> 17;
  state ^= state << 5;
  return state;
}

const char* waits_in(const Fiber& f) {
  if (f.state == Fiber::State::kAtBarrier) return "__syncthreads";
  if (f.state == Fiber::State::kInCollective) return "a collective of its warp";
  return "nothing";
}

}  // namespace

void Worker::report_deadlock() {
  std::fflush(stdout);
  const Fiber* told[2] = {};  // one thread at the barrier, one in a collective
  for (const Fiber& f : fibers) {
    if (f.linear >= n_threads || f.state == Fiber::State::kDone) continue;
    const Fiber*& slot = told[f.state == Fiber::State::kAtBarrier ? 0 : 1];
    if (!slot) slot = &f;
  }
  for (const Fiber* f : told) {
    if (!f) continue;
    std::fprintf(stderr, "simt: thread %u waits in %s", f->linear, waits_in(*f));
    for (const Meeting& m : meetings[f->warp])
      if (m.arrived >> f->lane & 1)
        std::fprintf(stderr, " of lanes %08x, of which %08x are there", m.mask, m.arrived);
    std::fputc('\n', stderr);
    cur = const_cast<Fiber*>(f);
  }
  fail("deadlock: threads of the block wait at different barriers or collectives");
}

Fiber* Worker::next() {
  if (ready.empty()) report_deadlock();
  Fiber* f = &fibers[ready.pop(random == 0 ? 0 : draw(random))];
  cur = f;
  return f;
}

void Worker::wait(Fiber& me) {
  Fiber* other = next();
  if (other != &me) Context::change(me.context, other->context);
}

__attribute__((noinline, no_sanitize("thread"))) void Worker::finish(Fiber& me) {
  if (!me.copies.empty()) fail("a thread ended with asynchronous copies it had not waited for");
  me.state = Fiber::State::kDone;
  --n_live;
  // Threads that have ended count as arrived.
  if (n_live > 0 && n_at_barrier == n_live) open_barrier();
  Context::change(me.context, n_live == 0 ? home : next()->context, true);
  std::abort();  // nobody comes back here
}

void Worker::open_barrier() {
  n_at_barrier = 0;
  if (shadow) shadow->barrier();
  for (unsigned i = 0; i < n_threads; ++i)
    if (fibers[i].state == Fiber::State::kAtBarrier) wake(fibers[i]);
}

void block_barrier() {
  Fiber& me = this_fiber();
  Worker& w = *worker;
  me.state = Fiber::State::kAtBarrier;
  if (++w.n_at_barrier == w.n_live) w.open_barrier();
  w.wait(me);
}

// ---- Blocks and launches ------------------------------------------------------------------------

void Worker::prepare_threads() {
  const dim3 size = block.bdim;
  n_threads = n_live = size.x * size.y * size.z;
  n_at_barrier = 0;
  while (stacks.size() < n_threads) stacks.emplace_back();
  if (fibers.size() < n_threads) fibers.resize(n_threads);
  const unsigned n_warps = (n_threads + kWarp - 1) / kWarp;
  if (meetings.size() < n_warps) meetings.resize(n_warps);
  for (unsigned w = 0; w < n_warps; ++w) meetings[w].clear();
  ready.clear();
  for (unsigned i = 0; i < n_threads; ++i) {
    Fiber& f = fibers[i];
    f.tid = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    f.linear = i, f.lane = i % kWarp, f.warp = i / kWarp;
    f.copies.clear();
    f.open_group = 0;
    f.context.prepare(stacks[i], i, run_thread);
    wake(f);
  }
}

void Worker::run_block(dim3 index) {
  block.bid = index;
  block.smem = arena.clear(block.smem_bytes, options.racecheck);
  blk = &block;
  prepare_threads();
  shadow = options.racecheck ? &shadow_memory : nullptr;
  if (shadow) shadow->begin_block(block.smem_bytes, n_threads);
  const dim3 grid = block.gdim;
  const unsigned linear = index.x + grid.x * (index.y + grid.y * index.z);
  random = options.seed == 0 ? 0 : (options.seed * 2654435761u + linear * 40503u) | 1u;
  Context::change(home, next()->context);
  cur = nullptr;
  // The race checker has reported it already.
  if (!shadow && !arena.end_is_intact()) fail("a write past the end of shared memory");
  blk = nullptr;
}

namespace {

// Workers that no launch uses, with their stacks. Never destroyed, because a thread that outlives
// main could still return one.
class Pool {
 public:
  std::unique_ptr<Worker> take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> w = std::move(free_.back());
    free_.pop_back();
    return w;
  }
  void give_back(std::unique_ptr<Worker> w) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(w));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> free_;
};
Pool& pool() {
  static Pool* const all = new Pool;
  return *all;
}

}  // namespace

void launch(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body) {
  if (worker) fail("a kernel cannot be launched from a kernel");
  const std::size_t n_threads = std::size_t{block.x} * block.y * block.z;
  const std::size_t n_blocks = std::size_t{grid.x} * grid.y * grid.z;
  if (n_threads == 0 || n_threads > kMaxThreads) fail("a block has 1 to 1024 threads");
  std::atomic<std::size_t> next_block{0};
  const auto work = [&] {
    std::unique_ptr<Worker> mine = pool().take();
    worker = mine.get();
    worker->body = &body;
    worker->block = {{}, block, grid, nullptr, shared_bytes};
    for (std::size_t b; (b = next_block++) < n_blocks;)
      worker->run_block(dim3(static_cast<unsigned>(b % grid.x),
                             static_cast<unsigned>(b / grid.x % grid.y),
                             static_cast<unsigned>(b / grid.x / grid.y)));
    worker = nullptr;
    pool().give_back(std::move(mine));
  };
  std::vector<std::thread> others;
  const std::size_t n_workers = std::min<std::size_t>(std::max(options.workers, 1u), n_blocks);
  for (std::size_t i = 1; i < n_workers; ++i) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
}

}  // namespace simt

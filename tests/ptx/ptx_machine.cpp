// SPDX-License-Identifier: Apache-2.0
// Blocks, warps and fragments: the lanes of a warp at the lowest instruction run first and join
// others that stand where they arrive, which brings the branches of structured code back together.
#include "tests/ptx/ptx_machine.h"

#include <algorithm>
#include <climits>
#include <random>

namespace million::ptx {

Machine::Machine(const Interpreter& owner, const Entry& entry_to_run, Dim grid_size, Dim block_size,
                 std::size_t shared, std::vector<uint8_t> params)
    : entry(entry_to_run),
      grid(grid_size),
      block(block_size),
      owner_(owner),
      params_(std::move(params)),
      executed_(entry.code.size()),
      wavefronts_(entry.code.size()) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024) fail("block of " + std::to_string(threads) + " threads");
  if (params_.size() < entry.param_bytes)
    fail(entry.name + " takes " + std::to_string(entry.param_bytes) + " bytes of arguments, not " +
         std::to_string(params_.size()));
  granule_bits_ = std::countr_zero(static_cast<unsigned>(entry.shared_granule));
  shared_.resize(shared > 0 ? entry.dynamic_base + shared : entry.static_shared);
  cells_.resize((shared_.size() >> granule_bits_) + 1);
  warps_.resize((threads + 31) / 32);
  for (std::size_t k = 0; k < warps_.size(); ++k) warps_[k].index = static_cast<int>(k);
}

void Machine::refuse(const std::string& what) const {
  fail(what + " in " + entry.names[static_cast<std::size_t>(now->name)] + " of " + entry.name +
           ", block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) +
           ", " + std::to_string(block_index.z) + ")",
       now->line);
}

uint64_t Machine::get(Warp& w, const Operand& o, int lane) const {
  switch (o.width) {
    case 1:
      return predicate(w, o) >> lane & 1;
    case 4:
      return in<uint32_t>(w, o)[lane];
    case 8:
      return in<uint64_t>(w, o)[lane];
    default:
      return 0;
  }
}

void Machine::set(Warp& w, const Operand& o, int lane, uint64_t value) const {
  switch (o.width) {
    case 1:
      set_predicate(w, o, value != 0 ? kAllLanes : 0, 1u << lane);
      break;
    case 4:
      out<uint32_t>(w, o)[lane] = static_cast<uint32_t>(o.narrow ? value & 0xFFFF : value);
      break;
    case 8:
      out<uint64_t>(w, o)[lane] = value;
      break;
    default:
      break;
  }
}

void Machine::start_warp(Warp& w) {
  const unsigned threads = block.x * block.y * block.z;
  const unsigned left = threads - 32u * static_cast<unsigned>(w.index);
  w.alive = left >= 32 ? kAllLanes : (1u << left) - 1;
  w.syncs = 1;
  w.file.assign(entry.n_words / 2 + 1, ~uint64_t{0});
  w.fragments.assign(1, Fragment{0, w.alive, Fragment::State::kReady});
  w.local.assign(32 * entry.local_bytes, 0xFF);
  for (auto& groups : w.copies) groups.assign(1, {});
  for (const SpecialRegister& s : entry.specials)
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned t = 32u * static_cast<unsigned>(w.index) + lane, eq = 1u << lane;
      const unsigned values[] = {
          t % block.x,
          t / block.x % block.y,
          t / (block.x * block.y),
          block.x,
          block.y,
          block.z,
          block_index.x,
          block_index.y,
          block_index.z,
          grid.x,
          grid.y,
          grid.z,
          lane,
          static_cast<unsigned>(w.index),
          static_cast<unsigned>(warps_.size()),
          eq,
          eq - 1,
          eq | (eq - 1),
          ~(eq | (eq - 1)),
          ~(eq - 1),
          32,
          static_cast<unsigned>(shared_.size() - std::min(shared_.size(), entry.dynamic_base)),
          static_cast<unsigned>(shared_.size())};
      static_assert(std::size(values) == std::size(kSpecialNames));
      w.words()[s.at + lane] = values[s.which];
    }
}

void Machine::run_block(uint64_t number, unsigned seed) {
  block_index = {static_cast<unsigned>(number % grid.x),
                 static_cast<unsigned>(number / grid.x % grid.y),
                 static_cast<unsigned>(number / grid.x / grid.y)};
  first_epoch_ = ++epoch_;
  std::fill(shared_.begin(), shared_.end(), uint8_t{0xFF});
  std::vector<int> order;
  for (Warp& w : warps_) {
    start_warp(w);
    order.push_back(w.index);
  }
  std::mt19937 random(seed + static_cast<unsigned>(number));
  for (;;) {
    if (seed != 0) std::shuffle(order.begin(), order.end(), random);
    for (const int k : order) run_warp(warps_[static_cast<std::size_t>(k)]);
    bool alive = false;
    for (Warp& w : warps_) {  // every thread that lives stands at the barrier
      alive |= w.alive != 0;
      for (Fragment& f : w.fragments) f.state = Fragment::State::kReady;
    }
    if (!alive) return;
    ++epoch_;
  }
}

/// The ready fragment at the lowest instruction, joined with others there. `limit`: where the next
/// one stands.
bool Machine::pick(Warp& w, Fragment* f, int* limit) {
  f->pc = *limit = INT_MAX;
  f->lanes = 0;
  f->state = Fragment::State::kReady;
  for (const Fragment& g : w.fragments)
    if (g.state == Fragment::State::kReady) f->pc = std::min(f->pc, g.pc);
  std::erase_if(w.fragments, [&](const Fragment& g) {
    const bool taken = g.state == Fragment::State::kReady && g.pc == f->pc;
    if (taken) f->lanes |= g.lanes;
    if (!taken && g.state == Fragment::State::kReady) *limit = std::min(*limit, g.pc);
    return taken;
  });
  return f->lanes != 0;
}

void Machine::run_warp(Warp& w) {
  Fragment f;
  int limit = 0;
  while (pick(w, &f, &limit)) run_fragment(w, f, limit);
  for (const Fragment& g : w.fragments)
    if (g.state == Fragment::State::kAtCollective) {
      now = &entry.code[static_cast<std::size_t>(g.pc)];
      refuse("lanes of a warp that never arrive");
    }
}

/// True if all lanes that the collective names stand here; else the fragment waits.
bool Machine::arrive(Warp& w, Fragment& f, uint32_t* active) {
  const uint32_t mask = collective_mask(*this, w, *active);
  if ((mask & ~w.alive) != 0) refuse("a collective names lanes that have left");
  if ((*active & ~mask) != 0) refuse("a lane takes part in a collective that does not name it");
  uint32_t here = *active;
  for (const Fragment& g : w.fragments)
    if (g.state == Fragment::State::kAtCollective && g.pc == f.pc) here |= g.lanes & mask;
  if (here != mask) {
    w.fragments.push_back({f.pc, *active, Fragment::State::kAtCollective});
    f.lanes &= ~*active;  // those whose guard is off go on
    return false;
  }
  for (Fragment& g : w.fragments)
    if (g.state == Fragment::State::kAtCollective && g.pc == f.pc) g.lanes &= ~mask;
  std::erase_if(w.fragments, [](const Fragment& g) { return g.lanes == 0; });
  f.lanes |= here;
  *active = here;
  return true;
}

/// Copies that are still on their way would land in memory that may be another's by then.
void Machine::leave(Warp& w, uint32_t lanes) {
  w.alive &= ~lanes;
  each_lane_in_order(lanes, [&](int lane) {
    for (const CopyGroup& group : w.copies[lane])
      if (!group.empty()) refuse("a thread leaves before its cp.async has been waited for");
  });
}

/// Runs until the fragment ends, waits, or comes to where others stand.
void Machine::run_fragment(Warp& w, Fragment f, int limit) {
  const int n = static_cast<int>(entry.code.size());
  while (f.lanes != 0 && f.pc < limit) {
    if (f.pc >= n) {  // behind the last instruction
      leave(w, f.lanes);
      return;
    }
    const Instruction& i = entry.code[static_cast<std::size_t>(f.pc)];
    now = &i;
    uint32_t active = f.lanes;
    if (i.guard >= 0) active &= w.words()[i.guard] ^ (i.guard_negated ? kAllLanes : 0u);
    if (active != 0 && is_collective(i.op) && !arrive(w, f, &active)) {
      ++f.pc;
      continue;
    }
    ++executed_[static_cast<std::size_t>(f.pc)];
    switch (i.op) {
      case Op::kBra:
        if (active == f.lanes) {
          f.pc = i.target;
        } else if (active != 0) {
          w.fragments.push_back({i.target, active, Fragment::State::kReady});
          w.fragments.push_back({f.pc + 1, f.lanes & ~active, Fragment::State::kReady});
          return;
        } else {
          ++f.pc;
        }
        continue;
      case Op::kRet:
        leave(w, active);
        f.lanes &= ~active;
        break;
      case Op::kBar:
        if (active == 0) break;
        if (get(w, i.a[0], 0) != 0 ||
            (i.n_operands > 1 && get(w, i.a[1], 0) != block.x * block.y * block.z))
          refuse("unsupported: a barrier of some threads");
        w.fragments.push_back({f.pc + 1, active, Fragment::State::kAtBarrier});
        f.lanes &= ~active;
        break;
      default:
        if (active != 0) execute(w, active);
    }
    ++f.pc;
  }
  if (f.lanes != 0) w.fragments.push_back(f);
}

void Machine::execute(Warp& w, uint32_t active) {
  switch (now->op) {
    case Op::kUnsupported:  // the name says why
      fail(entry.names[static_cast<std::size_t>(now->name)] + " in " + entry.name, now->line);
    case Op::kTrap:
      refuse("trap");
    case Op::kNothing:
      return;
    case Op::kLd:
      return load(w, active);
    case Op::kSt:
      return store(w, active);
    case Op::kAtom:
    case Op::kRed:
      return atomic(w, active);
    case Op::kCpAsync:
      return copy_async(w, active);
    case Op::kCpCommit:
      return copy_commit(w, active);
    case Op::kCpWaitGroup:
      return copy_wait(w, active, get(w, now->a[0], 0));
    case Op::kCpWaitAll:
      copy_commit(w, active);
      return copy_wait(w, active, 0);
    case Op::kMov:
    case Op::kCvta:
    case Op::kSetp:
    case Op::kSet:
    case Op::kSelp:
    case Op::kSlct:
    case Op::kIsspacep:
      return execute_move(*this, w, active);
    case Op::kCvt:
    case Op::kCvtPack:
      return execute_convert(*this, w, active);
    default:
      break;
  }
  if (is_collective(now->op) || now->op == Op::kActivemask)
    execute_collective(*this, w, active);
  else if (is_float(now->type))
    execute_float(*this, w, active);
  else
    execute_integer(*this, w, active);
}

Counts Machine::counts() const {
  Counts c = totals_;
  c.mma = mma_count;
  for (std::size_t k = 0; k < entry.code.size(); ++k) {
    const std::string& name = entry.names[static_cast<std::size_t>(entry.code[k].name)];
    c.warp_instructions += executed_[k];
    if (executed_[k] > 0) c.by_opcode[name] += executed_[k];
    if (wavefronts_[k] > 0) c.wavefronts_by_opcode[name] += wavefronts_[k];
  }
  return c;
}

}  // namespace million::ptx

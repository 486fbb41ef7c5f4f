// SPDX-License-Identifier: Apache-2.0
// Loads, stores, atomics and asynchronous copies: where they lie, whether they may, what they cost.
#include "tests/ptx/ptx_machine.h"

#include <algorithm>

namespace million::ptx {
namespace {

/// Distinct words per bank, in the worst bank, summed over the parts in which a warp's access goes:
/// 128 bytes at a time.
uint64_t wavefronts(const uint64_t* addresses, uint32_t active, int bytes) {
  const int lanes = bytes == 16 ? 8 : bytes == 8 ? 16 : 32;
  uint64_t sum = 0;
  for (int first = 0; first < 32; first += lanes) {
    uint64_t words[32][32];
    uint8_t n[32] = {}, most = 0;
    for (int lane = first; lane < first + lanes; ++lane) {
      if ((active >> lane & 1) == 0) continue;
      for (int b = 0; b < bytes; b += 4) {
        const uint64_t word = (addresses[lane] + static_cast<uint64_t>(b)) / 4;
        const auto bank = static_cast<std::size_t>(word % 32);
        uint64_t* const end = words[bank] + n[bank];
        if (std::find(words[bank], end, word) != end) continue;
        *end = word;
        most = std::max(most, ++n[bank]);
      }
    }
    sum += most;
  }
  return sum;
}

uint64_t sectors(const uint64_t* addresses, uint32_t active, int bytes) {
  uint64_t all[32];
  int n = 0;
  each_lane_in_order(active, [&](int lane) {
    const uint64_t sector = addresses[lane] / 32;
    if (n == 0 || all[n - 1] != sector) all[n++] = sector;
  });
  if (!std::is_sorted(all, all + n)) std::sort(all, all + n);
  return static_cast<uint64_t>(std::unique(all, all + n) - all) *
         static_cast<uint64_t>(std::max(1, bytes / 32));
}

Space space_of(Space space, uint64_t address) {
  if (space != Space::kGeneric) return space;
  switch (address >> 56) {
    case kSharedWindow >> 56:
      return Space::kShared;
    case kLocalWindow >> 56:
      return Space::kLocal;
    case kParamWindow >> 56:
      return Space::kParam;
    default:
      return Space::kGlobal;
  }
}

std::string hexadecimal(uint64_t v) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

template <class T>
T read_as(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// The new value of an atomic; integers.
template <class T>
T atomic_integer(Mode mode, T old, T v, T other) {
  using U = std::make_unsigned_t<T>;
  switch (mode) {
    case Mode::kAdd:
      return static_cast<T>(static_cast<U>(old) + static_cast<U>(v));
    case Mode::kMin:
      return std::min(old, v);
    case Mode::kMax:
      return std::max(old, v);
    case Mode::kAnd:
      return old & v;
    case Mode::kOr:
      return old | v;
    case Mode::kXor:
      return old ^ v;
    case Mode::kExch:
      return v;
    case Mode::kCas:
      return old == v ? other : old;
    case Mode::kInc:
      return old >= v ? T{0} : static_cast<T>(old + 1);
    default:
      return old == 0 || old > v ? v : static_cast<T>(old - 1);
  }
}

uint64_t atomic_value(const Machine& m, Type type, Mode mode, uint64_t old, uint64_t v,
                      uint64_t other) {
  if (is_float(type)) {
    if (mode != Mode::kAdd) m.refuse("unsupported atomic");
    if (type == Type::kF64)
      return std::bit_cast<uint64_t>(std::bit_cast<double>(old) + std::bit_cast<double>(v));
    const auto a = static_cast<uint32_t>(old), b = static_cast<uint32_t>(v);
    if (type == Type::kF32)
      return std::bit_cast<uint32_t>(std::bit_cast<float>(a) + std::bit_cast<float>(b));
    uint32_t sum = 0;
    for (int k = 0; k < size_of(type) * 8; k += 16)
      sum |= static_cast<uint32_t>(
                 round_to_half(static_cast<double>(half_to_float(static_cast<uint16_t>(a >> k))) +
                               half_to_float(static_cast<uint16_t>(b >> k))))
             << k;
    return sum;
  }
  switch (type) {
    case Type::kS32:
      return static_cast<uint32_t>(atomic_integer(
          mode, static_cast<int32_t>(old), static_cast<int32_t>(v), static_cast<int32_t>(other)));
    case Type::kU32:
    case Type::kB32:
      return atomic_integer(mode, static_cast<uint32_t>(old), static_cast<uint32_t>(v),
                            static_cast<uint32_t>(other));
    case Type::kS64:
      return static_cast<uint64_t>(atomic_integer(
          mode, static_cast<int64_t>(old), static_cast<int64_t>(v), static_cast<int64_t>(other)));
    case Type::kU64:
    case Type::kB64:
      return atomic_integer(mode, old, v, other);
    case Type::kB16:
      return atomic_integer(mode, static_cast<uint16_t>(old), static_cast<uint16_t>(v),
                            static_cast<uint16_t>(other));
    default:
      m.refuse("unsupported atomic");
  }
}

}  // namespace

void Machine::report_race(uint64_t offset, int thread) {
  ++totals_.races;
  if (first_race_.empty())
    first_race_ = "race on shared memory at byte " + std::to_string(offset) + ", thread " +
                  std::to_string(thread) + ", " + entry.names[static_cast<std::size_t>(now->name)] +
                  " of " + entry.name + " (PTX line " + std::to_string(now->line) + ")";
}

/// Two threads are ordered by __syncthreads, those of one warp by __syncwarp too.
void Machine::check_race(Cell& c, uint64_t offset, Access access, const Warp& w, int lane) {
  const auto thread = static_cast<uint16_t>(32 * w.index + lane);
  const auto warp_of = [](uint16_t t) { return t / 32; };
  bool race = c.write_epoch == epoch_ && c.writer != thread &&
              (warp_of(c.writer) != w.index || c.write_syncs == w.syncs) &&
              !(access == Access::kAtomic && c.atomic);
  const uint32_t own = 1u << w.index;
  const bool read_now = c.read_epoch == epoch_ && c.read_warps != 0;
  if (access != Access::kRead && read_now)
    race |= (c.read_warps & ~own) != 0 ||
            (c.read_syncs == w.syncs && (c.reader != thread || c.several_readers));
  if (race) report_race(offset, thread);
  if (access != Access::kRead) {
    c.write_epoch = epoch_, c.write_syncs = w.syncs, c.writer = thread;
    c.atomic = access == Access::kAtomic;
    c.read_warps = 0;
    return;
  }
  if (c.write_epoch < first_epoch_) ++totals_.unwritten;
  const bool same_time = read_now && c.read_syncs == w.syncs && warp_of(c.reader) == w.index;
  c.several_readers = same_time && (c.several_readers || c.reader != thread);
  if (!read_now) c.read_warps = 0;
  c.read_epoch = epoch_, c.read_syncs = w.syncs, c.reader = thread;
  c.read_warps |= own;
}

uint8_t* Machine::shared_at(uint64_t offset, int bytes, Access access, Warp& w, int lane) {
  if (offset + static_cast<uint64_t>(bytes) > shared_.size() || offset > shared_.size())
    refuse("shared memory out of bounds: byte " + std::to_string(offset) + " of " +
           std::to_string(shared_.size()) + ", thread " + std::to_string(32 * w.index + lane));
  const uint64_t end = (offset + static_cast<uint64_t>(bytes) - 1) >> granule_bits_;
  for (uint64_t k = offset >> granule_bits_; k <= end; ++k)
    check_race(cells_[k], offset, access, w, lane);
  return shared_.data() + offset;
}

uint8_t* Machine::global_at(uint64_t address, int bytes, Access access, int thread) {
  const uint64_t end = address + static_cast<uint64_t>(bytes);
  if (address < known_first_ || end > known_end_) {
    const auto [first, last] = owner_.memory_at(address);
    if (address < first || end > last)
      refuse(std::string("global memory ") + (access == Access::kRead ? "read" : "written") +
             " out of bounds at " + hexadecimal(address) + " (memory [" + hexadecimal(first) +
             ", " + hexadecimal(last) + ")), thread " + std::to_string(thread));
    known_first_ = first, known_end_ = last;
  }
  return reinterpret_cast<uint8_t*>(address);
}

uint8_t* Machine::resolve(Space space, uint64_t address, int bytes, Access access, Warp& w,
                          int lane) {
  const int thread = 32 * w.index + lane;
  const bool generic = space == Space::kGeneric;
  const auto n = static_cast<uint64_t>(bytes);
  if (address % n != 0)
    refuse("misaligned access of " + std::to_string(bytes) + " bytes at " + hexadecimal(address) +
           ", thread " + std::to_string(thread));
  switch (space_of(space, address)) {
    case Space::kShared:
      return shared_at(generic ? address - kSharedWindow : address & 0xFFFFFFFF, bytes, access, w,
                       lane);
    case Space::kParam:
      if (generic || address >= kParamWindow) address -= kParamWindow;
      if (address + n > params_.size() || access != Access::kRead)
        refuse("arguments out of bounds");
      return const_cast<uint8_t*>(params_.data()) + address;
    case Space::kLocal:
      if (generic) address -= kLocalWindow;
      if (address + n > entry.local_bytes) refuse("local memory out of bounds");
      return w.local.data() + static_cast<std::size_t>(lane) * entry.local_bytes + address;
    default:
      return global_at(address, bytes, access, thread);
  }
}

void Machine::count_access(Space space, const uint64_t* addresses, uint32_t active, int bytes) {
  const Space where = space_of(space, addresses[std::countr_zero(active)]);
  if (where == Space::kShared) {
    const uint64_t n = wavefronts(addresses, active, bytes);
    ++totals_.shared_requests;
    totals_.shared_wavefronts += n;
    wavefronts_[static_cast<std::size_t>(now - entry.code.data())] += n;
  } else if (where == Space::kGlobal) {
    ++totals_.global_requests;
    totals_.global_sectors += sectors(addresses, active, bytes);
  }
}

void Machine::addresses_of(Warp& w, const Operand& o, int64_t offset, uint32_t active,
                           uint64_t* to) const {
  const auto more = static_cast<uint64_t>(offset);
  if (o.width == 4) {
    const uint32_t* base = in<uint32_t>(w, o);
    each_lane(active, [=](int lane) { to[lane] = static_cast<uint32_t>(base[lane] + more); });
  } else {
    const uint64_t* base = in<uint64_t>(w, o);
    each_lane(active, [=](int lane) { to[lane] = base[lane] + more; });
  }
}

void Machine::load(Warp& w, uint32_t active) {
  const Instruction& i = *now;
  const int size = size_of(i.type), bytes = size * i.n_vector;
  uint64_t addresses[32];
  const uint8_t* from[32];
  addresses_of(w, i.a[1], i.offset, active, addresses);
  each_lane_in_order(active, [&](int lane) {
    from[lane] = resolve(i.space, addresses[lane], bytes, Access::kRead, w, lane);
  });
  count_access(i.space, addresses, active, bytes);
  if (i.n_vector > 1 && i.a[0].count != i.n_vector) refuse("unsupported operands");
  for (int e = 0; e < i.n_vector; ++e) {
    const Operand& to = i.n_vector > 1 ? element(i.a[0], e) : i.a[0];
    const int at = e * size;
    if (size == 4 && to.width == 4) {
      uint32_t* d = out<uint32_t>(w, to);
      each_lane_in_order(active, [&](int l) { d[l] = read_as<uint32_t>(from[l] + at); });
      continue;
    }
    each_lane_in_order(active, [&](int lane) {
      uint64_t v = 0;
      std::memcpy(&v, from[lane] + at, static_cast<std::size_t>(size));
      if (is_signed(i.type)) v = static_cast<uint64_t>(sign_extend(v, size));
      set(w, to, lane, v);
    });
  }
}

void Machine::store(Warp& w, uint32_t active) {
  const Instruction& i = *now;
  const int size = size_of(i.type), bytes = size * i.n_vector;
  uint64_t addresses[32];
  addresses_of(w, i.a[0], i.offset, active, addresses);
  if (i.n_vector > 1 && i.a[1].count != i.n_vector) refuse("unsupported operands");
  each_lane_in_order(active, [&](int lane) {
    uint8_t* to = resolve(i.space, addresses[lane], bytes, Access::kWrite, w, lane);
    for (int e = 0; e < i.n_vector; ++e) {
      const uint64_t v = get(w, i.n_vector > 1 ? element(i.a[1], e) : i.a[1], lane);
      std::memcpy(to + e * size, &v, static_cast<std::size_t>(size));
    }
  });
  count_access(i.space, addresses, active, bytes);
}

void Machine::atomic(Warp& w, uint32_t active) {
  const Instruction& i = *now;
  const int size = size_of(i.type);
  uint64_t addresses[32];
  addresses_of(w, i.a[1], i.offset, active, addresses);
  static std::mutex one_at_a_time;  // blocks may run on several host threads
  const std::lock_guard lock(one_at_a_time);
  each_lane_in_order(active, [&](int lane) {
    uint8_t* at = resolve(i.space, addresses[lane], size, Access::kAtomic, w, lane);
    uint64_t old = 0;
    std::memcpy(&old, at, static_cast<std::size_t>(size));
    const uint64_t other = i.n_operands > 3 ? get(w, i.a[3], lane) : 0;
    const uint64_t v = atomic_value(*this, i.type, i.mode, old, get(w, i.a[2], lane), other);
    std::memcpy(at, &v, static_cast<std::size_t>(size));
    set(w, i.a[0], lane, old);
  });
  count_access(i.space, addresses, active, size);
}

/// The copy is withheld until its thread waits for it, so that a missing wait is seen.
void Machine::copy_async(Warp& w, uint32_t active) {
  const Instruction& i = *now;
  const auto bytes = static_cast<int>(get(w, i.a[2], 0));
  if (bytes != 4 && bytes != 8 && bytes != 16) refuse("unsupported size");
  uint64_t to[32], from[32];
  addresses_of(w, i.a[0], i.offset, active, to);
  addresses_of(w, i.a[1], i.offset2, active, from);
  each_lane_in_order(active, [&](int lane) {
    const int given = i.n_operands > 3 ? static_cast<int>(get(w, i.a[3], lane)) : bytes;
    if (given < 0 || given > bytes) refuse("source of " + std::to_string(given) + " bytes");
    // From here on the hardware may write.
    resolve(Space::kShared, to[lane], bytes, Access::kWrite, w, lane);
    if (from[lane] % static_cast<uint64_t>(bytes) != 0) refuse("misaligned source");
    if (given > 0) global_at(from[lane], given, Access::kRead, 32 * w.index + lane);
    w.copies[lane].back().push_back({to[lane], from[lane], bytes, given});
  });
  count_access(Space::kShared, to, active, bytes);
  count_access(Space::kGlobal, from, active, bytes);
}

void Machine::copy_commit(Warp& w, uint32_t active) {
  each_lane_in_order(active, [&](int lane) { w.copies[lane].emplace_back(); });
}

void Machine::copy_wait(Warp& w, uint32_t active, std::size_t keep) {
  each_lane_in_order(active, [&](int lane) {
    std::vector<CopyGroup>& groups = w.copies[lane];
    while (groups.size() > keep + 1) {
      for (const PendingCopy& c : groups.front()) {
        uint8_t* to = resolve(Space::kShared, c.to, c.bytes, Access::kWrite, w, lane);
        std::memset(to, 0, static_cast<std::size_t>(c.bytes));
        std::memcpy(to, reinterpret_cast<const void*>(c.from),
                    static_cast<std::size_t>(c.source_bytes));
      }
      groups.erase(groups.begin());
    }
  });
}

}  // namespace million::ptx

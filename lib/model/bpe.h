// SPDX-License-Identifier: Apache-2.0
// The merge engine of all tokenizers: symbols in a linked list, candidate pairs in a heap. n log n
// in the length of a word, so a file without spaces costs no more than prose.
#pragma once

#include "lib/core/error.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace million {

constexpr int32_t kNoToken = -1;     ///< a symbol that is no token
constexpr int32_t kMergedAway = -2;  ///< a symbol that is now part of the one before it

/// A piece of the word: `bytes` bytes from `at`.
struct MergeSymbol {
  int32_t id, previous, next;
  uint32_t at, bytes;
};

/// What two neighbours become. rank < 0: they do not merge. The lowest rank merges first.
struct Merge {
  int32_t rank = -1, id = kNoToken;
};

struct MergeCandidate {
  int32_t rank, at, left, right, result;  // ids as they were when the pair was seen
  /// For a max-heap that gives the lowest rank first, then the leftmost pair.
  bool operator<(const MergeCandidate& o) const {
    return rank != o.rank ? rank > o.rank : at > o.at;
  }
};

/// A word under work, and buffers that one encode() reuses for all words.
class MergeWord {
 public:
  void clear() { symbols_.clear(); }
  /// Appends a symbol of `bytes` bytes.
  void add(int32_t id, std::size_t bytes) {
    const auto i = static_cast<int32_t>(symbols_.size());
    const uint32_t at = symbols_.empty() ? 0 : symbols_.back().at + symbols_.back().bytes;
    if (i > 0) symbols_.back().next = i;
    symbols_.push_back({id, i - 1, -1, at, static_cast<uint32_t>(bytes)});
  }

  /// Merges until no pair does. `rule(left, right)` gives the Merge of two neighbouring symbols.
  template <class Rule>
  void merge(const Rule& rule);

  /// Calls take(symbol) for each symbol that is left, in order.
  template <class Take>
  void for_each(const Take& take) const {
    if (symbols_.empty()) return;
    for (int32_t i = 0; i >= 0; i = symbols_[static_cast<std::size_t>(i)].next)
      take(symbols_[static_cast<std::size_t>(i)]);
  }

 private:
  MergeSymbol& symbol(int32_t i) { return symbols_[static_cast<std::size_t>(i)]; }
  std::vector<MergeSymbol> symbols_;
  std::vector<MergeCandidate> heap_;
};

template <class Rule>
void MergeWord::merge(const Rule& rule) {
  heap_.clear();
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Merge m = rule(symbol(left), symbol(right));
    if (m.rank < 0) return;
    heap_.push_back({m.rank, left, symbol(left).id, symbol(right).id, m.id});
    std::push_heap(heap_.begin(), heap_.end());
  };
  for (std::size_t i = 1; i < symbols_.size(); ++i)
    offer(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i));
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    const MergeCandidate c = heap_.back();
    heap_.pop_back();
    MergeSymbol& left = symbol(c.at);
    const int32_t right = left.next;
    // A pair seen earlier may be gone: one of its sides was merged away or has grown. A side
    // without a token cannot have changed while it still has none.
    if (left.id != c.left || right < 0 || symbol(right).id != c.right) continue;
    left.id = c.result;
    left.bytes += symbol(right).bytes;
    left.next = symbol(right).next;
    symbol(right).id = kMergedAway;
    if (left.next >= 0) symbol(left.next).previous = c.at;
    offer(left.previous, c.at);
    offer(c.at, left.next);
  }
}

/// Merges that a file lists by rank.
class RankedMerges {
 public:
  /// `find(text)` gives the id of a token or -1. Error(kBadInput) with the number of a merge that
  /// is not "left right", names no token or stands there twice.
  template <class Find>
  RankedMerges(const std::vector<std::string>& merges, const Find& find);

  Merge operator()(const MergeSymbol& left, const MergeSymbol& right) const {
    const auto it = table_.find(key(left.id, right.id));
    return it == table_.end() ? Merge{} : it->second;
  }

 private:
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  std::unordered_map<uint64_t, Merge> table_;
};

/// The halves of "left right". Error(kBadInput) on any other form.
std::pair<std::string_view, std::string_view> split_merge(std::string_view text, std::size_t rank);
[[noreturn]] void refuse_merge(std::string_view text, std::string_view part, std::size_t rank);

template <class Find>
RankedMerges::RankedMerges(const std::vector<std::string>& merges, const Find& find) {
  table_.reserve(merges.size());
  std::string joined;
  const auto id_of = [&](std::string_view text, std::size_t rank) {
    const int32_t id = find(text);
    if (id < 0) refuse_merge(merges[rank], text, rank);
    return id;
  };
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = split_merge(merges[rank], rank);
    joined.assign(left).append(right);
    const Merge merge{static_cast<int32_t>(rank), id_of(joined, rank)};
    const auto [at, fresh] = table_.emplace(key(id_of(left, rank), id_of(right, rank)), merge);
    MILLION_REQUIRE(fresh, ErrorCode::kBadInput, "merge {} is the same as merge {}", rank,
                    at->second.rank);
  }
}

}  // namespace million

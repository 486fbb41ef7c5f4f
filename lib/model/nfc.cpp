// SPDX-License-Identifier: Apache-2.0
#include "lib/model/nfc.h"

#include "lib/model/nfc_tables.h"
#include "lib/model/pretokenizer.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace million {
namespace {

constexpr uint32_t kHangul = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr uint32_t kVowels = 21, kTails = 28, kSyllables = 19 * kVowels * kTails;

struct Tables {
  std::unordered_map<uint32_t, std::array<uint32_t, 2>> parts;  // second is 0 for single ones
  std::unordered_map<uint64_t, uint32_t> composed;
  std::unordered_map<uint32_t, uint8_t> classes;
  std::vector<bool> may_change;  // [0x110000] false: composed text may hold it anywhere
  Tables();
};

uint64_t pair_key(uint32_t a, uint32_t b) { return uint64_t{a} << 32 | b; }

template <std::size_t N, class Take>
void for_each_entry(const uint32_t (&runs)[N], std::size_t width, const Take& take) {
  for (std::size_t i = 0; i < N;) {
    const uint32_t first = runs[i], count = runs[i + 1];
    i += 2;
    for (uint32_t c = first; c < first + count; ++c, i += width) take(c, runs + i);
  }
}

Tables::Tables() : may_change(0x110000, false) {
  for_each_entry(nfc::kSingle, 1, [&](uint32_t c, const uint32_t* to) {
    parts[c] = {to[0], 0};
    may_change[c] = true;
  });
  const auto& excluded = nfc::kNotComposed;
  for_each_entry(nfc::kPair, 2, [&](uint32_t c, const uint32_t* to) {
    parts[c] = {to[0], to[1]};
    if (std::binary_search(std::begin(excluded), std::end(excluded), c)) {
      may_change[c] = true;
    } else {
      composed[pair_key(to[0], to[1])] = c;
      may_change[to[1]] = true;
    }
  });
  for (std::size_t i = 0; i < std::size(nfc::kClass); i += 3)
    for (uint32_t c = nfc::kClass[i]; c < nfc::kClass[i] + nfc::kClass[i + 1]; ++c) {
      classes[c] = static_cast<uint8_t>(nfc::kClass[i + 2]);
      may_change[c] = true;
    }
  for (uint32_t c = kVowel; c < kTail + kTails; ++c) may_change[c] = true;
}

const Tables& tables() {
  static const Tables t;
  return t;
}

uint32_t code_point(std::string_view s) {
  const auto tail = [&](std::size_t i) { return static_cast<unsigned char>(s[i]) & 0x3Fu; };
  const auto a = static_cast<unsigned char>(s[0]);
  if (s.size() == 1) return a;
  if (s.size() == 2) return (a & 0x1Fu) << 6 | tail(1);
  if (s.size() == 3) return (a & 0x0Fu) << 12 | tail(1) << 6 | tail(2);
  return (a & 0x07u) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
}

struct Mark {
  uint32_t code;
  uint8_t combining;  // class, 0 for a character that others combine with
};

void decompose(uint32_t c, std::vector<Mark>& out) {
  const Tables& t = tables();
  if (c - kHangul < kSyllables) {
    const uint32_t i = c - kHangul;
    out.push_back({kLead + i / (kVowels * kTails), 0});
    out.push_back({kVowel + i / kTails % kVowels, 0});
    if (i % kTails != 0) out.push_back({kTail + i % kTails, 0});
    return;
  }
  const auto it = t.parts.find(c);
  if (it == t.parts.end()) {
    const auto k = t.classes.find(c);
    out.push_back({c, k == t.classes.end() ? uint8_t{0} : k->second});
    return;
  }
  decompose(it->second[0], out);  // the tables are at most four deep
  if (it->second[1] != 0) decompose(it->second[1], out);
}

/// Orders each run of combining marks by class; equal classes keep their order.
void order_marks(std::vector<Mark>& text) {
  const auto combines = [](const Mark& m) { return m.combining != 0; };
  for (auto at = text.begin(); at != text.end();) {
    at = std::find_if(at, text.end(), combines);
    const auto end = std::find_if_not(at, text.end(), combines);
    std::stable_sort(at, end, [](Mark a, Mark b) { return a.combining < b.combining; });
    at = end;
  }
}

/// The code that a followed by b composes to, or 0.
uint32_t compose(uint32_t a, uint32_t b) {
  if (a - kLead < 19 && b - kVowel < kVowels)
    return kHangul + ((a - kLead) * kVowels + (b - kVowel)) * kTails;
  const bool open = a - kHangul < kSyllables && (a - kHangul) % kTails == 0;
  if (open && b > kTail && b < kTail + kTails) return a + (b - kTail);
  const auto it = tables().composed.find(pair_key(a, b));
  return it == tables().composed.end() ? 0 : it->second;
}

void append_composed(std::vector<Mark>& text, std::string& out) {
  order_marks(text);
  std::size_t n = 0, starter = SIZE_MAX;
  int before = -1;  // class of the last mark since the starter, -1 for none
  for (const Mark m : text) {
    const bool reachable = starter != SIZE_MAX && before < m.combining;
    if (const uint32_t c = reachable ? compose(text[starter].code, m.code) : 0; c != 0) {
      text[starter].code = c;
      continue;
    }
    if (m.combining == 0) starter = n;
    before = m.combining == 0 ? -1 : m.combining;
    text[n++] = m;
  }
  for (std::size_t i = 0; i < n; ++i) append_utf8(text[i].code, out);
  text.clear();
}

bool may_change(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = utf8_length(text.substr(at));
    if (n > 1 && tables().may_change[code_point(text.substr(at, n))]) return true;
    at += std::max<std::size_t>(n, 1);
  }
  return false;
}

}  // namespace

std::string to_nfc(std::string_view text) {
  if (!may_change(text)) return std::string(text);
  std::string out;
  out.reserve(text.size());
  std::vector<Mark> run;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = utf8_length(text.substr(at));
    if (n > 0) {
      decompose(code_point(text.substr(at, n)), run);
    } else {
      append_composed(run, out);
      out.push_back(text[at]);
    }
    at += std::max<std::size_t>(n, 1);
  }
  append_composed(run, out);
  return out;
}

}  // namespace million

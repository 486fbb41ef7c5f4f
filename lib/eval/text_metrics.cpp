// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/text_metrics.h"
#include "lib/core/checked.h"
#include "lib/eval/unicode_text.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace million {

namespace {

using Words = std::vector<std::u32string>;

/// str.split().
Words split_at_spaces(std::u32string_view text) {
  Words words;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && !is_space_char(text[end])) ++end;
    if (end > at) words.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

bool is_ascii_punctuation(char32_t c) {
  return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
         (c >= 123 && c <= 126);
}

/// Lower case, no ASCII punctuation, blanks in place of articles (words of letters and digits, so
/// that "a" between dashes is one), cut at white space.
Words answer_words(std::string_view text) {
  std::u32string kept = lower_case(code_points(text));
  kept.erase(std::remove_if(kept.begin(), kept.end(), is_ascii_punctuation), kept.end());
  for (std::size_t at = 0; at < kept.size();) {
    std::size_t end = at;
    while (end < kept.size() && is_word_char(kept[end])) ++end;
    const std::u32string_view word = std::u32string_view(kept).substr(at, end - at);
    if (word == U"a" || word == U"an" || word == U"the")
      std::fill(kept.begin() + at, kept.begin() + end, U' ');
    at = end + 1;
  }
  return split_at_spaces(kept);
}

}  // namespace

double token_f1(std::string_view prediction, std::string_view reference) {
  const Words predicted = answer_words(prediction), wanted = answer_words(reference);
  std::unordered_map<std::u32string, int64_t> left;
  for (const auto& word : wanted) ++left[word];
  int64_t common = 0;
  for (const auto& word : predicted) {
    const auto it = left.find(word);
    if (it != left.end() && it->second > 0) --it->second, ++common;
  }
  if (common == 0) return 0;
  const double p = static_cast<double>(common) / static_cast<double>(predicted.size());
  const double r = static_cast<double>(common) / static_cast<double>(wanted.size());
  return 2 * p * r / (p + r);
}

namespace {

/// Sentences as word numbers; equal words have equal numbers over both texts.
class WordNumbers {
 public:
  std::vector<std::vector<uint32_t>> sentences(std::u32string_view text) {
    std::vector<std::vector<uint32_t>> out;
    for (std::size_t at = 0; at <= text.size();) {
      const std::size_t end = std::min(text.find(U'.', at), text.size());
      if (end > at) out.push_back(numbers(split_at_spaces(text.substr(at, end - at))));
      at = end + 1;
    }
    return out;
  }
  std::size_t size() const { return number_.size(); }

 private:
  std::vector<uint32_t> numbers(const Words& words) {
    if (words.empty()) return {number_of(U"")};
    std::vector<uint32_t> out;
    for (const auto& word : words) out.push_back(number_of(word));
    return out;
  }
  uint32_t number_of(const std::u32string& word) {
    return number_.try_emplace(word, static_cast<uint32_t>(number_.size())).first->second;
  }
  std::unordered_map<std::u32string, uint32_t> number_;
};

std::size_t distinct(const std::vector<std::vector<uint32_t>>& sentences, std::size_t n_words) {
  std::vector<bool> seen(n_words);
  for (const auto& sentence : sentences)
    for (const uint32_t word : sentence) seen[word] = true;
  return static_cast<std::size_t>(std::count(seen.begin(), seen.end(), true));
}

/// Marks the words of the longest common subsequence of x and y that the package's walk finds: from
/// the end, a common word is taken, else x gets shorter if that keeps strictly more, else y. One
/// bit per cell tells which; lengths are kept of two rows only.
void mark_common(std::span<const uint32_t> x, std::span<const uint32_t> y,
                 std::vector<bool>& marked) {
  const std::size_t n = x.size(), m = y.size();
  const uint64_t cells = checked_mul(n, m, "words of two sentences");
  MILLION_REQUIRE(cells <= uint64_t{1} << 33, ErrorCode::kNoResources,
                  "ROUGE-L of sentences of {} and {} words needs more than 1 GiB; text without a "
                  "full stop is one sentence",
                  n, m);
  std::vector<bool> up(cells);
  std::vector<uint32_t> above(m + 1), here(m + 1);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < m; ++j) {
      up[i * m + j] = above[j + 1] > here[j];
      here[j + 1] = x[i] == y[j] ? above[j] + 1 : std::max(above[j + 1], here[j]);
    }
    above.swap(here);
  }
  for (std::size_t i = n, j = m; i > 0 && j > 0;) {
    if (x[i - 1] == y[j - 1]) {
      marked[x[i - 1]] = true;
      --i, --j;
    } else if (up[(i - 1) * m + j - 1]) {
      --i;
    } else {
      --j;
    }
  }
}

}  // namespace

double rouge_l(std::string_view prediction, std::string_view reference) {
  WordNumbers numbers;
  const auto predicted = numbers.sentences(code_points(prediction));
  const auto wanted = numbers.sentences(code_points(reference));
  if (predicted.empty() || wanted.empty()) return 0;
  std::vector<bool> marked(numbers.size());
  for (const auto& reference_sentence : wanted)
    for (const auto& sentence : predicted) mark_common(reference_sentence, sentence, marked);
  const auto common = static_cast<double>(std::count(marked.begin(), marked.end(), true));
  const double r = common / static_cast<double>(distinct(wanted, numbers.size()));
  const double p = common / static_cast<double>(distinct(predicted, numbers.size()));
  return 2.0 * ((p * r) / (p + r + 1e-8));
}

double classification_match(std::string_view prediction, std::string_view reference,
                            std::span<const std::string> classes) {
  std::vector<std::string_view> found;
  for (const auto& label : classes)
    if (prediction.find(label) != std::string_view::npos) found.push_back(label);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const std::string_view label = found[i];
    if (label != reference && reference.find(label) != std::string_view::npos)
      found.erase(std::find(found.begin(), found.end(), label));
  }
  const bool right = std::find(found.begin(), found.end(), reference) != found.end();
  return right ? 1.0 / static_cast<double>(found.size()) : 0.0;
}

namespace {

/// End of the run of digits that starts at `at`.
std::size_t digits_end(std::u32string_view text, std::size_t at) {
  while (at < text.size() && is_digit_char(text[at])) ++at;
  return at;
}

}  // namespace

double number_match(std::string_view prediction, std::string_view number) {
  const std::u32string text = code_points(prediction), wanted = code_points(number);
  int64_t numbers = 0, right = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = digits_end(text, at);
    if (end > at) {
      ++numbers;
      right += std::u32string_view(text).substr(at, end - at) == wanted;
    }
    at = end + 1;
  }
  return numbers == 0 ? 0.0 : static_cast<double>(right) / static_cast<double>(numbers);
}

std::optional<std::string> paragraph_number(std::string_view reference, std::string_view marker) {
  const std::u32string text = code_points(reference), word = code_points(marker);
  for (std::size_t at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    const std::size_t begin = at + word.size(), end = digits_end(text, begin);
    if (end > begin) return utf8(std::u32string_view(text).substr(begin, end - begin));
  }
  return std::nullopt;
}

namespace {

/// difflib.SequenceMatcher(None, a, b): matching characters of the blocks that it finds.
class BlockMatcher {
 public:
  BlockMatcher(std::u32string_view a, std::u32string_view b) : a_(a), b_(b) {
    for (std::size_t j = 0; j < b.size(); ++j) places_[b[j]].push_back(j);
    if (b.size() < 200) return;
    // "autojunk": what fills more than 1 % of a long text starts no block.
    for (auto it = places_.begin(); it != places_.end();)
      it = it->second.size() > b.size() / 100 + 1 ? places_.erase(it) : std::next(it);
  }

  int64_t matches() {
    int64_t sum = 0;
    std::vector<Part> queue = {{0, a_.size(), 0, b_.size()}};
    while (!queue.empty()) {
      const Part part = queue.back();
      queue.pop_back();
      const Block block = longest(part);
      if (block.size == 0) continue;
      sum += static_cast<int64_t>(block.size);
      queue.push_back({part.a0, block.a, part.b0, block.b});
      queue.push_back({block.a + block.size, part.a1, block.b + block.size, part.b1});
    }
    return sum;
  }

 private:
  struct Part {
    std::size_t a0, a1, b0, b1;
  };
  struct Block {
    std::size_t a, b, size;
  };

  /// The longest block, of several the first in a, then the first in b; made longer at both ends by
  /// equal characters, which matters for those that start none.
  Block longest(const Part& part) {
    Block best{part.a0, part.b0, 0};
    std::vector<std::size_t> before(b_.size() + 1), here(b_.size() + 1);  // [j + 1]: ends at b[j]
    for (std::size_t i = part.a0; i < part.a1; ++i) {
      std::fill(here.begin(), here.end(), 0);
      if (const auto it = places_.find(a_[i]); it != places_.end()) {
        for (const std::size_t j : it->second) {
          if (j < part.b0 || j >= part.b1) continue;
          const std::size_t size = here[j + 1] = before[j] + 1;
          if (size > best.size) best = {i + 1 - size, j + 1 - size, size};
        }
      }
      before.swap(here);
    }
    while (best.a > part.a0 && best.b > part.b0 && a_[best.a - 1] == b_[best.b - 1])
      --best.a, --best.b, ++best.size;
    while (best.a + best.size < part.a1 && best.b + best.size < part.b1 &&
           a_[best.a + best.size] == b_[best.b + best.size])
      ++best.size;
    return best;
  }

  std::u32string_view a_, b_;
  std::unordered_map<char32_t, std::vector<std::size_t>> places_;
};

int64_t common_subsequence(std::u32string_view a, std::u32string_view b) {
  std::vector<int64_t> above(b.size() + 1), here(b.size() + 1);
  for (const char32_t c : a) {
    for (std::size_t j = 0; j < b.size(); ++j)
      here[j + 1] = c == b[j] ? above[j] + 1 : std::max(above[j + 1], here[j]);
    above.swap(here);
  }
  return above.back();
}

}  // namespace

int edit_ratio_percent(std::string_view a, std::string_view b, EditRatio ratio) {
  const std::u32string x = code_points(a), y = code_points(b);
  if (x == y) return 100;
  if (x.empty() || y.empty()) return 0;
  const auto all = static_cast<double>(x.size() + y.size());
  // Each library's own order of operations: at halves it decides where rounding goes.
  const double share =
      ratio == EditRatio::kDifflib
          ? 2.0 * static_cast<double>(BlockMatcher(x, y).matches()) / all
          : 1.0 - (all - 2.0 * static_cast<double>(common_subsequence(x, y))) / all;
  return static_cast<int>(std::nearbyint(100 * share));
}

double code_similarity(std::string_view prediction, std::string_view reference, EditRatio ratio) {
  prediction.remove_prefix(std::min(prediction.find_first_not_of('\n'), prediction.size()));
  std::string_view line;
  for (std::size_t at = 0; at <= prediction.size();) {
    const std::size_t end = std::min(prediction.find('\n', at), prediction.size());
    const std::string_view candidate = prediction.substr(at, end - at);
    if (candidate.find_first_of("`#") == candidate.npos && candidate.find("//") == candidate.npos) {
      line = candidate;
      break;
    }
    at = end + 1;
  }
  return edit_ratio_percent(line, reference, ratio) / 100.0;
}

std::string_view first_line(std::string_view prediction) {
  prediction.remove_prefix(std::min(prediction.find_first_not_of('\n'), prediction.size()));
  return prediction.substr(0, prediction.find('\n'));
}

}  // namespace million

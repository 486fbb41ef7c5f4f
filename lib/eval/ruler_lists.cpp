// SPDX-License-Identifier: Apache-2.0
// RULER's three tasks beyond needles: chains of assignments, the common words of a list, the
// frequent words of a coded text.
// Source: NVIDIA/RULER scripts/data/synthetic/{variable_tracking,common_words_extraction,
// freq_words_extraction}.py.
#include "lib/core/error.h"
#include "lib/eval/prompt_fit.h"
#include "lib/eval/ruler.h"

#include <algorithm>
#include <numbers>
#include <numeric>
#include <set>

namespace million {

namespace {

std::string join(const std::vector<std::string>& items, std::string_view between) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += between;
    out += items[i];
  }
  return out;
}

/// `count` different random words of `length` letters from `first` on.
std::vector<std::string> letter_words(Rng& rng, size_t count, int length, char first) {
  std::vector<std::string> words;
  std::set<std::string> known;
  while (words.size() < count) {
    std::string word;
    for (int i = 0; i < length; ++i) word += static_cast<char>(first + rng.below(26));
    if (known.insert(word).second) words.push_back(word);
  }
  return words;
}

std::vector<TaskSample> make_samples(const TaskInfo& task, const TaskPlan& plan, UnitRange range,
                                     const Draft& draft) {
  if (range.guess == 0) range.guess = fit_sample(task, plan, "fit", range, draft).size;
  std::vector<TaskSample> samples;
  for (int i = 0; i < plan.samples; ++i)
    samples.push_back(fit_sample(task, plan, fmt::format("s{}", i), range, draft).sample);
  return samples;
}

// ------------------------------------------------------------------------ variable tracking

constexpr int kHops = 4;  // one chain
constexpr int kTrackTokens = 30;
constexpr int kExampleTokens = 500;  ///< the solved example fills at most so many
constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

struct Chain {
  std::string prompt, head;
  std::vector<std::string> variables;
  std::string value;
};

/// A chain "VAR A = 12345", "VAR B = VAR A", ... in order among n_lines of noise.
Chain make_chain(Rng& rng, int n_lines, int letters, const std::string& not_this_value) {
  Chain chain;
  chain.variables = letter_words(rng, kHops + 1, letters, 'A');
  do {
    chain.value = std::to_string(random_between(rng, 10000, 99998));
  } while (chain.value == not_this_value);
  const auto places = random_places(rng, n_lines, kHops + 1);
  std::vector<std::string> lines;
  for (int i = 0, next = 0; i < n_lines; ++i) {
    if (next <= kHops && places[next] == i) {
      lines.push_back(fmt::format(
          "VAR {} = {}", chain.variables[next],
          next == 0 ? chain.value : "VAR " + chain.variables[static_cast<size_t>(next) - 1]));
      ++next;
    }
    lines.emplace_back(kNoise);
  }
  chain.prompt = fmt::format(
      "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{}\n"
      "Question: Find all variables that are assigned the value {} in the text above.",
      join(lines, "\n"), chain.value);
  // Differs: the published head ends with a space, which byte-pair vocabularies put in front of the
  // next word; lm-evaluation-harness strips it too.
  chain.head = fmt::format(
      " Answer: According to the chain(s) of variable assignment in the text above, {} variables "
      "are assigned the value {}, they are:",
      kHops + 1, chain.value);
  return chain;
}

std::string solved(const Chain& chain) {
  return chain.prompt + chain.head + " " + join(chain.variables, " ") + "\n\n";
}

/// Lines of noise of the solved example; at least one more than there are assignments.
int example_lines(const TaskPlan& plan) {
  Rng rng = sample_rng(plan, "vt:example");
  int lines = kHops + 2;
  for (int more = lines + 1; more < kExampleTokens; ++more) {
    Rng same = rng;
    if (plan.count(solved(make_chain(same, more, 3, ""))) > kExampleTokens) break;
    lines = more;
  }
  return lines;
}

// ----------------------------------------------------------------------------- common words

constexpr int kCommon = 10;
constexpr int kCommonTokens = 120;

struct Repeats {
  int example_words, example_common, example_rare, common, rare;
};
/// Published counts; short prompts have room for fewer.
constexpr Repeats kLongRepeats = {40, 10, 3, 30, 3}, kShortRepeats = {20, 3, 1, 6, 1};
constexpr int kLongFrom = 4096;

struct WordList {
  std::string prompt;
  std::vector<std::string> common;
};

constexpr std::string_view kCommonHead =
    " Answer: The top 10 words that appear most often in the list are:";

/// `n` words, ten of them `common` times and the others `rare` times, shuffled and numbered.
WordList make_word_list(Rng& rng, int n, int common, int rare, bool pairs) {
  std::vector<int> pool(pairs ? static_cast<size_t>(ruler_pair_count()) : ruler_words().size());
  std::iota(pool.begin(), pool.end(), 0);
  WordList list;
  std::vector<std::string> entries;
  for (int i = 0; i < n; ++i) {
    std::swap(pool[i], pool[i + rng.below(pool.size() - static_cast<size_t>(i))]);
    const std::string word =
        pairs ? ruler_pair(pool[i]) : std::string(ruler_words()[static_cast<size_t>(pool[i])]);
    if (i < kCommon) list.common.push_back(word);
    entries.insert(entries.end(), static_cast<size_t>(i < kCommon ? common : rare), word);
  }
  shuffle(entries, rng);
  for (size_t i = 0; i < entries.size(); ++i) entries[i] = fmt::format("{}. {}", i + 1, entries[i]);
  list.prompt = fmt::format(
      "Below is a numbered list of words. In these words, some appear more often than others. "
      "Memorize the ones that appear most often.\n{}\nQuestion: What are the 10 most common words "
      "in the above list?",
      join(entries, " "));
  return list;
}

TaskSample common_words_draft(int size, Rng& rng, const Repeats& repeats, bool pairs) {
  const WordList example = make_word_list(rng, repeats.example_words, repeats.example_common,
                                          repeats.example_rare, false);
  const WordList list = make_word_list(rng, size, repeats.common, repeats.rare, pairs);
  std::vector<std::string> answer;
  for (size_t i = 0; i < example.common.size(); ++i)
    answer.push_back(fmt::format("{}. {}", i + 1, example.common[i]));
  TaskSample sample;
  sample.prompt =
      fmt::format("{}{} {}\n{}", example.prompt, kCommonHead, join(answer, " "), list.prompt);
  sample.answer_head = kCommonHead;
  sample.references = list.common;
  sample.max_new_tokens = kCommonTokens;
  sample.facts["n_words"] = size;
  sample.facts["freq_common"] = repeats.common;
  sample.facts["freq_others"] = repeats.rare;
  sample.facts["words"] = pairs ? "adjective-noun pairs" : "single words";
  return sample;
}

// --------------------------------------------------------------------------- frequent words

constexpr int kCodedLetters = 6, kAsked = 3, kFrequentTokens = 50;
/// From here on ranks 2 to 5 differ in count: 80 / zeta(2) * (1/16 - 1/25) > 1.
constexpr int kLeastCoded = 80;

/// How often the word of rank k (from 1) stands in a text of n words: the zeta distribution of
/// exponent 2, rounded down as published.
int coded_count(int n, int k) {
  constexpr double kZeta2 = std::numbers::pi * std::numbers::pi / 6.0;
  return static_cast<int>(n / (static_cast<double>(k) * k) / kZeta2);
}

TaskSample frequent_words_draft(int size, Rng& rng, size_t n_vocab) {
  std::vector<std::string> vocab = letter_words(rng, n_vocab, kCodedLetters, 'a');
  vocab[0] = "...";  // the most frequent one is noise
  std::vector<std::string> text;
  Json counts = Json::array();
  for (size_t k = 1; k <= vocab.size(); ++k) {
    const int count = coded_count(size, static_cast<int>(k));
    text.insert(text.end(), static_cast<size_t>(count), vocab[k - 1]);
    if (k >= 2 && k <= kAsked + 2) counts.push_back(count);
  }
  shuffle(text, rng);
  TaskSample sample;
  sample.prompt = fmt::format(
      "Read the following coded text and track the frequency of each coded word. Find the three "
      "most frequently appeared coded words. {}\nQuestion: Do not provide any explanation. Please "
      "ignore the dots '....'. What are the three most frequently appeared words in the above "
      "coded text?",
      join(text, " "));
  sample.answer_head =
      " Answer: According to the coded text above, the three most frequently appeared words are:";
  sample.references.assign(vocab.begin() + 1, vocab.begin() + 1 + kAsked);
  sample.max_new_tokens = kFrequentTokens;
  sample.facts["n_words"] = text.size();
  sample.facts["counts"] = counts;  // of the three asked for and the next
  return sample;
}

}  // namespace

std::vector<TaskSample> make_variable_tracking(const TaskInfo& task, const TaskPlan& plan) {
  check_plan(task, plan);
  const int in_example = example_lines(plan);
  const Draft draft = [in_example](int size, Rng rng) {
    const Chain example = make_chain(rng, in_example, 3, "");
    const Chain chain = make_chain(rng, size, 5, example.value);
    TaskSample sample;
    sample.prompt = solved(example) + chain.prompt;
    sample.answer_head = chain.head;
    sample.references = chain.variables;
    sample.max_new_tokens = kTrackTokens;
    sample.facts["value"] = chain.value;
    sample.facts["hops"] = kHops;
    return sample;
  };
  return make_samples(task, plan, {.least = kHops + 2}, draft);
}

std::vector<TaskSample> make_common_words(const TaskInfo& task, const TaskPlan& plan) {
  check_plan(task, plan);
  const Repeats& repeats = plan.length < kLongFrom ? kShortRepeats : kLongRepeats;
  const auto draft_of = [&repeats](bool pairs) -> Draft {
    return [&repeats, pairs](int size, Rng rng) {
      return common_words_draft(size, rng, repeats, pairs);
    };
  };
  UnitRange range{.least = kCommon + 1, .most = static_cast<int>(ruler_words().size())};
  range.guess = fit_sample(task, plan, "fit", range, draft_of(false)).size;
  // All words used and room left: pairs of words for all, the common ones too, which would stand
  // out otherwise.
  if (range.guess < range.most) return make_samples(task, plan, range, draft_of(false));
  return make_samples(task, plan, {.least = kCommon + 1, .most = ruler_pair_count()},
                      draft_of(true));
}

std::vector<TaskSample> make_frequent_words(const TaskInfo& task, const TaskPlan& plan) {
  check_plan(task, plan);
  // Published: one word of vocabulary for 50 tokens of prompt.
  const auto n_vocab = static_cast<size_t>(std::max((plan.length - kFrequentTokens) / 50, 5));
  const Draft draft = [n_vocab](int size, Rng rng) {
    return frequent_words_draft(size, rng, n_vocab);
  };
  return make_samples(task, plan, {.least = kLeastCoded}, draft);
}

}  // namespace million

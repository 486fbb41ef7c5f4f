// SPDX-License-Identifier: Apache-2.0
// Passkey and needle-in-a-haystack tasks. One fact is hidden in a long text and asked for at its
// end; what varies is the length of the text and the depth of the fact. Easy for a full model, and
// so saturated by it: a lost needle speaks, a found one says little.
#include "lib/core/error.h"
#include "lib/eval/haystack.h"
#include "lib/eval/prompt_fit.h"
#include "lib/eval/string_match.h"
#include "lib/eval/task.h"

#include <algorithm>
#include <array>

namespace million {

namespace {

// Landmark Attention (arXiv 2305.16300) llama/run_test.py, word for word, "memorize them" included.
constexpr std::string_view kPasskeyHead =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.";
constexpr std::string_view kPasskeyQuestion = "What is the pass key?";
constexpr std::string_view kPasskeyAnswer = " The pass key is";
constexpr int kPasskeyTokens = 10;  // as published; five digits
constexpr int kNumberTokens = 16;   // seven digits one by one, and a few words around them

constexpr std::string_view kGridHead =
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. "
    "I will ask for one of them afterwards.";

// Few enough to read, more than any depth grid asks for.
constexpr std::array<std::string_view, 48> kCities = {
    "Accra",   "Athens",   "Baku",    "Bangkok", "Berlin", "Bogota",    "Brussels", "Cairo",
    "Chicago", "Colombo",  "Dakar",   "Delhi",   "Doha",   "Dublin",    "Geneva",   "Hanoi",
    "Havana",  "Helsinki", "Jakarta", "Kampala", "Kyoto",  "Lagos",     "Lima",     "Lisbon",
    "London",  "Madrid",   "Manila",  "Maputo",  "Milan",  "Moscow",    "Nairobi",  "Osaka",
    "Oslo",    "Paris",    "Prague",  "Quito",   "Riga",   "Rome",      "Seattle",  "Seoul",
    "Sofia",   "Sydney",   "Taipei",  "Tbilisi", "Tokyo",  "Vancouver", "Vienna",   "Warsaw"};

constexpr std::string_view kPizza =
    "one of the secret ingredients needed to build the perfect pizza.";
constexpr int kPizzaNeedles = 5;
constexpr int kPizzaTokens = 48;
// None is a part of another, and a model that guesses pizza ingredients would name others.
constexpr std::array<std::string_view, 16> kIngredients = {
    "Prosciutto", "Goat cheese", "Fennel",   "Saffron", "Horseradish", "Tahini",
    "Rhubarb",    "Cardamom",    "Lavender", "Tofu",    "Sauerkraut",  "Marzipan",
    "Tarragon",   "Molasses",    "Wasabi",   "Quinoa"};

std::string depth_label(double depth, int sample) {
  return fmt::format("d{:.4f}-s{}", depth, sample);
}

/// The plan's text or the filler. A random start makes trials independent where the text is long.
struct Source {
  explicit Source(const TaskPlan& plan)
      : own(plan.haystack.empty() ? Haystack::filler() : Haystack(plan.haystack)),
        name(plan.haystack.empty() ? "filler" : "text") {}
  int random_start(Rng& rng) const {
    return static_cast<int>(rng.below(static_cast<uint64_t>(own.size())));
  }
  void describe(int pieces, Json& facts) const {
    facts["haystack"] = name;
    // More than 1: the text was shorter than the prompt and repeats.
    facts["haystack_repeats"] = static_cast<double>(pieces) / own.size();
  }
  Haystack own;
  std::string name;
};

/// A number that the text does not hold already, nor any of `others`.
std::string fresh_number(Rng& rng, const Haystack& haystack,
                         const std::vector<std::string>& others) {
  for (;;) {
    std::string number = std::to_string(random_between(rng, 1'000'000, 9'999'999));
    const bool known = std::find(others.begin(), others.end(), number) != others.end();
    if (!known && !haystack.contains(number)) return number;
  }
}

enum class Order { kDepthsOutside, kSamplesOutside };

/// All (depth, sample) of a draft(size, rng, sample, depth). Neighbours are those whose prompts
/// have most in common, so that they can be read once.
template <class DepthDraft>
std::vector<TaskSample> by_depth(const TaskInfo& task, const TaskPlan& plan, Order order,
                                 const DepthDraft& draft) {
  check_plan(task, plan);
  const auto at = [&draft](int sample, double depth) -> Draft {
    return [&draft, sample, depth](int size, Rng rng) { return draft(size, rng, sample, depth); };
  };
  UnitRange range;
  range.guess = fit_sample(task, plan, "fit", range, at(0, 0.5)).size;
  std::vector<TaskSample> samples;
  const auto n_depths = static_cast<int>(plan.depths.size());
  for (int i = 0; i < n_depths * plan.samples; ++i) {
    const bool outside = order == Order::kDepthsOutside;
    const double depth = plan.depths[outside ? i / plan.samples : i % n_depths];
    const int sample = outside ? i % plan.samples : i / n_depths;
    samples.push_back(
        fit_sample(task, plan, depth_label(depth, sample), range, at(sample, depth)).sample);
  }
  return samples;
}

Json depth_facts(double depth, double reached, const std::string& key) {
  Json facts = Json::object();
  facts["depth"] = depth;
  facts["depth_reached"] = reached;
  facts["key"] = key;
  return facts;
}

TaskSample passkey_draft(int size, Rng& rng, int, double depth) {
  const Haystack& filler = Haystack::filler();
  const std::string key = std::to_string(random_between(rng, 1, 50000));
  const int before = filler.boundary(0, size, depth);
  TaskSample sample;
  sample.prompt = kPasskeyHead;
  // Both halves start with the grass, as published.
  for (const std::string& line :
       {filler.passage(0, before),
        fmt::format("The pass key is {}. Remember it. {} is the pass key.", key, key),
        filler.passage(0, size - before), std::string(kPasskeyQuestion)})
    if (!line.empty()) sample.prompt += "\n" + line;
  sample.answer_head = kPasskeyAnswer;
  sample.references = {key};
  sample.max_new_tokens = kPasskeyTokens;
  sample.facts = depth_facts(depth, filler.share(0, before, size), key);
  sample.facts["haystack"] = "filler";
  return sample;
}

std::vector<TaskSample> make_passkey(const TaskInfo& task, const TaskPlan& plan) {
  // One filler for all: prompts of a depth are equal up to the key.
  return by_depth(task, plan, Order::kDepthsOutside, passkey_draft);
}

std::vector<TaskSample> make_needle(const TaskInfo& task, const TaskPlan& plan) {
  const Source source(plan);
  // A sample starts at the same sentence for all depths: equal up to the first needle.
  const auto draft = [&](int size, Rng& rng, int s, double depth) {
    Rng start = sample_rng(plan, fmt::format("{}:start-s{}", task.name, s));
    const int first = source.random_start(start);
    const std::string key = fresh_number(rng, source.own, {});
    const int before = source.own.boundary(first, size, depth);
    const Needle needle{
        before, fmt::format("The pass key is {}. Remember it. {} is the pass key.", key, key)};
    TaskSample sample;
    sample.prompt = fmt::format("{}\n{}\n{}", kPasskeyHead,
                                source.own.passage(first, size, {&needle, 1}), kPasskeyQuestion);
    sample.answer_head = kPasskeyAnswer;
    sample.references = {key};
    sample.max_new_tokens = kNumberTokens;
    sample.facts = depth_facts(depth, source.own.share(first, before, size), key);
    source.describe(size, sample.facts);
    return sample;
  };
  return by_depth(task, plan, Order::kSamplesOutside, draft);
}

/// One haystack with a needle at every depth, and the questions to it.
struct Grid {
  std::string body;  ///< up to the question
  std::vector<double> reached;
  std::vector<std::string> cities, keys;  ///< by depth
};

Grid make_grid(const Source& source, const TaskPlan& plan, int size, Rng& rng) {
  Grid grid;
  std::vector<std::string_view> cities;
  for (const std::string_view city : kCities)
    if (!source.own.contains(fmt::format("magic {} number", city))) cities.push_back(city);
  shuffle(cities, rng);
  const int first = source.random_start(rng);
  std::vector<Needle> needles;
  for (size_t i = 0; i < plan.depths.size(); ++i) {
    const int before = source.own.boundary(first, size, plan.depths[i]);
    grid.reached.push_back(source.own.share(first, before, size));
    grid.cities.emplace_back(cities[i]);
    grid.keys.push_back(fresh_number(rng, source.own, grid.keys));
    needles.push_back({before, fmt::format("The special magic {} number is: {}.",
                                           grid.cities.back(), grid.keys.back())});
  }
  std::stable_sort(needles.begin(), needles.end(),
                   [](const Needle& a, const Needle& b) { return a.after < b.after; });
  grid.body = fmt::format("{}\n{}\n", kGridHead, source.own.passage(first, size, needles));
  return grid;
}

TaskSample grid_question(const Grid& grid, const Source& source, double depth, size_t i, int size) {
  TaskSample sample;
  sample.prompt = grid.body + fmt::format("What is the special magic {} number?", grid.cities[i]);
  sample.answer_head = fmt::format(" The special magic {} number is:", grid.cities[i]);
  sample.references = {grid.keys[i]};
  sample.max_new_tokens = kNumberTokens;
  sample.facts = depth_facts(depth, grid.reached[i], grid.keys[i]);
  sample.facts["city"] = grid.cities[i];
  sample.facts["needles"] = grid.keys.size();
  source.describe(size, sample.facts);
  return sample;
}

std::vector<TaskSample> make_needle_grid(const TaskInfo& task, const TaskPlan& plan) {
  check_plan(task, plan);
  MILLION_REQUIRE(plan.depths.size() <= kCities.size(), ErrorCode::kUsage,
                  "task {}: {} depths, at most {} (one city each)", task.name, plan.depths.size(),
                  kCities.size());
  const Source source(plan);
  const size_t n_depths = plan.depths.size();
  // The haystack is sized by its longest question, so that all questions share one haystack.
  const Draft longest = [&](int size, Rng rng) {
    const Grid grid = make_grid(source, plan, size, rng);
    TaskSample out;
    int most = -1;
    for (size_t i = 0; i < n_depths; ++i) {
      const int tokens = plan.count(grid.cities[i]);
      if (tokens > most) out = grid_question(grid, source, plan.depths[i], i, size);
      most = std::max(most, tokens);
    }
    return out;
  };
  UnitRange range;
  range.guess = fit_sample(task, plan, "fit", range, longest).size;
  std::vector<TaskSample> samples;
  for (int s = 0; s < plan.samples; ++s) {
    const std::string label = fmt::format("s{}", s);
    const FittedSample fitted = fit_sample(task, plan, label, range, longest);
    Rng rng = sample_rng(plan, fmt::format("{}:{}", task.name, label));
    const Grid grid = make_grid(source, plan, fitted.size, rng);
    for (size_t i = 0; i < n_depths; ++i) {
      TaskSample sample = grid_question(grid, source, plan.depths[i], i, fitted.size);
      Json facts = fitted.sample.facts;  // tokens: of the longest question
      facts.update(sample.facts);
      facts["id"] = fmt::format("{}-{}-{}", task.name, plan.length, depth_label(plan.depths[i], s));
      sample.facts = std::move(facts);
      samples.push_back(std::move(sample));
    }
  }
  return samples;
}

std::vector<TaskSample> make_multi_needle(const TaskInfo& task, const TaskPlan& plan) {
  check_plan(task, plan);
  const Source source(plan);
  std::vector<std::string_view> free;
  for (const std::string_view word : kIngredients)
    if (!source.own.contains(word)) free.push_back(word);
  MILLION_REQUIRE(free.size() >= kPizzaNeedles, ErrorCode::kBadInput,
                  "task {}: the haystack text names all but {} of the {} ingredients that could be "
                  "hidden in it; give another text",
                  task.name, free.size(), kIngredients.size());
  const Draft draft = [&](int size, Rng rng) {
    std::vector<std::string_view> words = free;
    shuffle(words, rng);
    const int first = source.random_start(rng);
    std::vector<Needle> needles;
    TaskSample sample;
    sample.facts["depths_reached"] = Json::array();
    for (int i = 0; i < kPizzaNeedles; ++i) {
      const int before = source.own.boundary(first, size, (i + 0.5) / kPizzaNeedles);
      needles.push_back({before, fmt::format("{} is {}", words[i], kPizza)});
      sample.references.emplace_back(words[i]);
      sample.facts["depths_reached"].push_back(source.own.share(first, before, size));
    }
    sample.prompt =
        fmt::format("{}\n{}\nWhat are the secret ingredients needed to build the perfect pizza?",
                    kPasskeyHead, source.own.passage(first, size, needles));
    sample.answer_head = " The secret ingredients needed to build the perfect pizza are";
    sample.max_new_tokens = kPizzaTokens;
    sample.facts["keys"] = sample.references;
    source.describe(size, sample.facts);
    return sample;
  };
  UnitRange range;
  range.guess = fit_sample(task, plan, "fit", range, draft).size;
  std::vector<TaskSample> samples;
  for (int i = 0; i < plan.samples; ++i)
    samples.push_back(fit_sample(task, plan, fmt::format("s{}", i), range, draft).sample);
  return samples;
}

double score_number(const TaskInfo&, std::string_view prediction, const TaskSample& sample) {
  return first_integer_match(prediction, sample.references.at(0));
}

TaskInfo number_task(const char* name, const char* summary, const char* source,
                     decltype(TaskInfo::make) make) {
  return {.name = name,
          .summary = summary,
          .source = source,
          .metric = "first integer equal",
          .binary = true,
          .has_depth = true,
          .make = make,
          .score = score_number};
}

}  // namespace

std::span<const TaskInfo> needle_tasks() {
  static const std::array<TaskInfo, 4> kTasks = {
      number_task(
          "passkey",
          "a number from 1 to 50000 at a depth of repeated filler sentences (never in the "
          "haystack text); 10 new tokens",
          "Mohtashami & Jaggi, arXiv 2305.16300 (Landmark Attention); as in LongLM, KVQuant",
          make_passkey),
      number_task("needle_text",
                  "a 7-digit pass key at a depth of the haystack text, which starts at a random "
                  "sentence and repeats when short",
                  "KIVI, arXiv 2402.02750, needle test; Kamradt, LLMTest_NeedleInAHaystack",
                  make_needle),
      number_task("needle_grid",
                  "one haystack per seed with a keyed 7-digit needle at every depth of the grid, "
                  "one question per depth: cheap, as one reading serves all, but the needles of "
                  "the other depths are in the text too",
                  "Gemini 1.5, arXiv 2403.05530, 5.2.1.2 (Arize); one haystack for all depths is "
                  "our own",
                  make_needle_grid),
      TaskInfo{.name = "multi_needle",
               .summary = "five secret ingredients spread evenly over the haystack text, all asked "
                          "for; score is the fraction named",
               .source = "LangChain multi-needle in LLMTest_NeedleInAHaystack; ingredients and "
                         "even spread are our own",
               .metric = "fraction found",
               .make = make_multi_needle,
               .score = score_all}};
  return kTasks;
}

}  // namespace million

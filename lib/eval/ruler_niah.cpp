// SPDX-License-Identifier: Apache-2.0
// RULER's eight needle tasks: what is hidden (word or uuid keys, number or uuid values, how many),
// in what (repeated noise, an essay, other needles), and how many are asked for.
// Source: NVIDIA/RULER scripts/data/synthetic/niah.py and synthetic.yaml.
#include "lib/core/error.h"
#include "lib/eval/haystack.h"
#include "lib/eval/prompt_fit.h"
#include "lib/eval/ruler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

namespace million {

namespace {

enum class Hay { kNoise, kEssay, kNeedles };

struct NiahSpec {
  std::string_view task;
  Hay hay;
  bool uuid_keys, uuid_values;
  int n_keys, n_values, n_queries;
};

constexpr NiahSpec kSpecs[] = {
    {"niah_single_1", Hay::kNoise, false, false, 1, 1, 1},
    {"niah_single_2", Hay::kEssay, false, false, 1, 1, 1},
    {"niah_single_3", Hay::kEssay, false, true, 1, 1, 1},
    {"niah_multikey_1", Hay::kEssay, false, false, 4, 1, 1},
    {"niah_multikey_2", Hay::kNeedles, false, false, 1, 1, 1},
    {"niah_multikey_3", Hay::kNeedles, true, true, 1, 1, 1},
    {"niah_multivalue", Hay::kEssay, false, false, 1, 4, 1},
    // Published with one key, which the generator raises to the number of queries.
    {"niah_multiquery", Hay::kEssay, false, false, 4, 1, 4},
};

constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
constexpr int kNiahTokens = 128;
constexpr int kDepths = 40;  ///< needles lie at different ones of 40 even depths, 0 and 1 included

std::string random_uuid(Rng& rng) {  // version 4
  const uint64_t a = rng.next(), b = rng.next();
  return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", a >> 32, (a >> 16) & 0xFFFF, a & 0xFFF,
                     0x8000 | ((b >> 48) & 0x3FFF), b & 0xFFFF'FFFF'FFFF);
}

/// Keys and values of one sample, none twice: an answer must have one place in the prompt.
class Namer {
 public:
  Namer(Rng& rng, const Haystack& essay) : rng_(rng), essay_(essay) {}

  std::string key(bool uuid) {
    return fresh([&] {
      const auto pairs = static_cast<uint64_t>(ruler_pair_count());
      return uuid ? random_uuid(rng_) : ruler_pair(static_cast<int>(rng_.below(pairs)));
    });
  }
  std::string value(bool uuid) {
    return fresh([&] {
      return uuid ? random_uuid(rng_) : std::to_string(random_between(rng_, 1000000, 9999999));
    });
  }

 private:
  template <class Make>
  std::string fresh(const Make& make) {
    for (;;) {
      std::string name = make();
      if (!essay_.contains(name) && used_.insert(name).second) return name;
    }
  }

  Rng& rng_;
  const Haystack& essay_;
  std::unordered_set<std::string> used_;
};

std::string needle_text(const NiahSpec& spec, const std::string& key, const std::string& value) {
  return fmt::format("One of the special magic {} for {} is: {}.",
                     spec.uuid_values ? "uuids" : "numbers", key, value);
}

/// Lines of noise or of other needles, with the needles put before lines of their own.
std::string line_context(const NiahSpec& spec, int size, const std::vector<std::string>& needles,
                         Namer& namer, Rng& rng, std::vector<double>& depths) {
  const auto places = random_places(rng, size, static_cast<int>(needles.size()));
  std::string out;
  for (int i = 0, next = 0; i < size; ++i) {
    if (next < static_cast<int>(places.size()) && places[next] == i) {
      out += (out.empty() ? "" : "\n") + needles[next++];
      depths.push_back(static_cast<double>(i) / size);
    }
    if (!out.empty()) out += '\n';
    if (spec.hay == Hay::kNoise) {
      out += kNoise;
    } else {
      const std::string key = namer.key(spec.uuid_keys);
      out += needle_text(spec, key, namer.value(spec.uuid_values));
    }
  }
  return out;
}

std::string essay_context(const Haystack& essay, int size, const std::vector<std::string>& needles,
                          Rng& rng, std::vector<double>& depths) {
  std::vector<Needle> placed;
  for (const int depth : random_places(rng, kDepths, static_cast<int>(needles.size()))) {
    // The published depths are whole percents: round(linspace(0, 100, 40)).
    const auto percent = std::lround(depth * 100.0 / (kDepths - 1));
    placed.push_back({static_cast<int>(size * percent / 100), needles[placed.size()]});
    depths.push_back(essay.share(0, placed.back().after, size));
  }
  return essay.passage(0, size, placed);
}

std::string join_queries(const std::vector<std::string>& queries) {
  std::string out = queries[0];
  for (size_t i = 1; i < queries.size(); ++i)
    out += (i + 1 < queries.size() ? ", " : ", and ") + queries[i];
  return out;
}

/// The published template; with one answer the generator turns it into the singular.
void write_prompt(const NiahSpec& spec, const std::string& context, const std::string& query,
                  TaskSample& sample) {
  const bool one = spec.n_values * spec.n_queries == 1;
  std::string type = spec.uuid_values ? "uuid" : "number";
  if (!one) type += 's';
  const char* are = one ? "is" : "are";
  sample.prompt = fmt::format(
      "{} special magic {} {} hidden within the following text. Make sure to memorize it. I will "
      "quiz you about the {} afterwards.\n{}\nWhat {} the special magic {} for {} mentioned in "
      "the provided text?",
      one ? "A" : "Some", type, are, type, context, one ? "is" : "are all", type, query);
  sample.answer_head = fmt::format(" The special magic {} for {} mentioned in the provided text {}",
                                   type, query, are);
}

TaskSample niah_draft(const NiahSpec& spec, const Haystack& essay, int size, Rng& rng) {
  Namer namer(rng, essay);
  struct Hidden {
    int key;
    std::string value;
  };
  std::vector<std::string> keys;
  std::vector<Hidden> hidden;
  for (int k = 0; k < spec.n_keys; ++k) {
    keys.push_back(namer.key(spec.uuid_keys));
    for (int v = 0; v < spec.n_values; ++v) hidden.push_back({k, namer.value(spec.uuid_values)});
  }
  shuffle(hidden, rng);
  std::vector<std::string> needles;
  for (const Hidden& h : hidden) needles.push_back(needle_text(spec, keys[h.key], h.value));
  std::vector<double> depths;
  const std::string context = spec.hay == Hay::kEssay
                                  ? essay_context(essay, size, needles, rng, depths)
                                  : line_context(spec, size, needles, namer, rng, depths);
  TaskSample sample;
  std::vector<std::string> queries;
  sample.facts["depths"] = Json::array();
  for (const int k : random_places(rng, spec.n_keys, spec.n_queries)) {
    queries.push_back(keys[k]);
    for (size_t i = 0; i < hidden.size(); ++i) {
      if (hidden[i].key != k) continue;
      sample.references.push_back(hidden[i].value);
      sample.facts["depths"].push_back(depths[i]);
    }
  }
  write_prompt(spec, context, join_queries(queries), sample);
  sample.max_new_tokens = kNiahTokens;
  sample.facts["keys"] = queries;
  if (spec.hay == Hay::kEssay)
    sample.facts["haystack_repeats"] = static_cast<double>(size) / essay.size();
  return sample;
}

}  // namespace

std::vector<TaskSample> make_niah(const TaskInfo& task, const TaskPlan& plan) {
  check_plan(task, plan);
  const auto* spec = std::find_if(std::begin(kSpecs), std::end(kSpecs),
                                  [&](const NiahSpec& s) { return s.task == task.name; });
  MILLION_ASSERT(spec != std::end(kSpecs));
  const bool essay_given = spec->hay == Hay::kEssay && !plan.haystack.empty();
  const Haystack essay = essay_given ? Haystack(plan.haystack) : Haystack::filler();
  const Draft draft = [&](int size, Rng rng) {
    TaskSample sample = niah_draft(*spec, essay, size, rng);
    if (spec->hay == Hay::kEssay) sample.facts["haystack"] = essay_given ? "text" : "filler";
    return sample;
  };
  UnitRange range{.least = spec->n_keys * spec->n_values};
  // Keys are drawn until a new one comes, which must stay likely.
  if (spec->hay == Hay::kNeedles && !spec->uuid_keys) range.most = ruler_pair_count() / 2;
  range.guess = fit_sample(task, plan, "fit", range, draft).size;
  std::vector<TaskSample> samples;
  for (int i = 0; i < plan.samples; ++i)
    samples.push_back(fit_sample(task, plan, fmt::format("s{}", i), range, draft).sample);
  return samples;
}

}  // namespace million

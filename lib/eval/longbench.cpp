// SPDX-License-Identifier: Apache-2.0
#include "lib/eval/longbench.h"
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/json.h"
#include "lib/eval/longbench_reader.h"
#include "lib/eval/longbench_sets.h"
#include "lib/eval/task.h"
#include "lib/eval/text_metrics.h"
#include "lib/eval/unicode_text.h"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace million {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPrefix = "longbench:";
constexpr std::string_view kExtended = "_e";
/// A prompt shorter than this holds no question.
constexpr int kMinPromptTokens = 16;

/// "qasper_e" of the task "longbench:qasper_e": also the name of its file.
std::string_view file_name(const TaskInfo& task) {
  const std::string_view name = task.name;
  return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
}

const LongBenchSet& set_of(const TaskInfo& task) {
  std::string_view name = file_name(task);
  if (name.size() > kExtended.size() && name.substr(name.size() - kExtended.size()) == kExtended)
    name.remove_suffix(kExtended.size());
  for (const LongBenchSet& set : longbench_sets())
    if (set.name == name) return set;
  fail(ErrorCode::kUsage, "{}: no data set of LongBench", task.name);
}

bool needs_segmenter(LongBenchMetric metric) {
  return metric == LongBenchMetric::kTokenF1Chinese || metric == LongBenchMetric::kRougeLChinese;
}

void require_metric(const TaskInfo& task, const LongBenchSet& set) {
  MILLION_REQUIRE(
      !needs_segmenter(set.metric), ErrorCode::kUsage,
      "{}: its metric is defined on Chinese words as the program jieba cuts them, which "
      "is not part of this one, so no score of it would be LongBench's; of the Chinese "
      "tasks longbench:lsht and longbench:passage_retrieval_zh need no words",
      task.name);
}

/// The first of the places that has the file, or an empty path.
fs::path find_below(const fs::path& folder, std::initializer_list<const char*> places,
                    const std::string& name) {
  for (const char* place : places) {
    const fs::path path = folder / place / name;
    std::error_code unreadable;
    if (fs::exists(path, unreadable)) return path;
  }
  return {};
}

constexpr const char* kPromptFile = "dataset2prompt.json";
constexpr const char* kLengthFile = "dataset2maxlen.json";

fs::path setting_file(const fs::path& folder, const char* file) {
  return find_below(folder, {"", "config", "data"}, file);
}

std::string data_name(const TaskInfo& task) { return std::string(file_name(task)) + ".jsonl"; }

fs::path data_file(const TaskInfo& task, const TaskPlan& plan) {
  MILLION_REQUIRE(!plan.data.empty(), ErrorCode::kUsage,
                  "{}: needs LongBench's files: --data FOLDER, where FOLDER or FOLDER/data has "
                  "{}.jsonl",
                  task.name, file_name(task));
  const std::string name = data_name(task);
  const fs::path path = find_below(plan.data, {"", "data"}, name);
  MILLION_REQUIRE(
      !path.empty(), ErrorCode::kBadInput,
      "{}: neither {} nor {} is there; LongBench is not shipped (its parts have the licences of "
      "their sources): unpack data.zip of the Hugging Face data set THUDM/LongBench and give its "
      "folder with --data",
      task.name, (plan.data / name).string(), (plan.data / "data" / name).string());
  return path;
}

/// The entry of one of LongBench's two setting files, or null where file or entry is missing.
struct Setting {
  Json value;
  std::string where;  ///< "file: key"
};

Setting setting(const TaskPlan& plan, const char* file, std::string_view key) {
  const fs::path path = setting_file(plan.data, file);
  if (path.empty()) return {nullptr, ""};
  constexpr uint64_t kMaxBytes = uint64_t{1} << 20;
  Json json;
  try {
    json = Json::parse(read_file(path, kMaxBytes));
  } catch (const Json::parse_error& e) {
    fail(ErrorCode::kBadInput, "{}: no valid JSON from byte {} on", path.string(), e.byte);
  } catch (const Json::exception& e) {
    fail(ErrorCode::kBadInput, "{}: {}", path.string(), e.what());
  }
  MILLION_REQUIRE(json.is_object(), ErrorCode::kBadInput,
                  "{}: expected an object with one entry per data set, got a {}", path.string(),
                  json.type_name());
  const auto it = json.find(std::string(key));
  return {it == json.end() ? Json(nullptr) : *it, fmt::format("{}: \"{}\"", path.string(), key)};
}

/// What the data folder says, else the table.
struct Format {
  std::string prompt;
  std::string where;
  int max_new_tokens;
};

Format format_of(const LongBenchSet& set, const TaskPlan& plan) {
  Format format{std::string(set.prompt), std::string(set.name), set.max_new_tokens};
  if (const Setting s = setting(plan, kPromptFile, set.name); !s.value.is_null()) {
    MILLION_REQUIRE(s.value.is_string(), ErrorCode::kBadInput, "{} is a {}, not a prompt", s.where,
                    s.value.type_name());
    format.prompt = s.value.get<std::string>();
    format.where = s.where;
    // lm-evaluation-harness had this for months (issue 2932, PR 3273); scores fall without a sign.
    MILLION_REQUIRE(format.prompt.find("\\n") == std::string::npos, ErrorCode::kBadInput,
                    "{} has a backslash and an n where a line end is meant: written \\\\n for \\n; "
                    "the model would read other prompts than LongBench's",
                    s.where);
  }
  if (const Setting s = setting(plan, kLengthFile, set.name); !s.value.is_null()) {
    const bool fits = s.value.is_number_unsigned() && s.value.get<uint64_t>() >= 1 &&
                      s.value.get<uint64_t>() <= 1 << 20;
    MILLION_REQUIRE(fits, ErrorCode::kBadInput, "{} is {}, not a number of tokens from 1 to 2^20",
                    s.where, s.value.dump().substr(0, 40));
    format.max_new_tokens = static_cast<int>(s.value.get<uint64_t>());
  }
  return format;
}

const char* paragraph_word(LongBenchMetric metric) {
  return metric == LongBenchMetric::kRetrieval ? "Paragraph " : "段落";
}

bool is_retrieval(LongBenchMetric metric) {
  return metric == LongBenchMetric::kRetrieval || metric == LongBenchMetric::kRetrievalChinese;
}

/// Error(kBadInput) on a record that the task's metric cannot score.
void require_scorable(const LongBenchSet& set, const LongBenchRecord& record) {
  MILLION_REQUIRE(set.metric != LongBenchMetric::kClassification || !record.classes.empty(),
                  ErrorCode::kBadInput,
                  "{}: {} is a classification task, but \"all_classes\" has no label", record.where,
                  set.name);
  if (!is_retrieval(set.metric)) return;
  const char* word = paragraph_word(set.metric);
  for (const std::string& answer : record.answers)
    MILLION_REQUIRE(paragraph_number(answer, word), ErrorCode::kBadInput,
                    "{}: the answer \"{}\" names no paragraph; expected \"{}7\"", record.where,
                    valid_utf8(answer.substr(0, 60)), word);
}

TaskSample make_sample(const LongBenchSet& set, const Format& format, const TaskPlan& plan,
                       LongBenchRecord record, int64_t index) {
  const int limit = plan.length - format.max_new_tokens - plan.overhead_tokens;
  CutPrompt cut =
      cut_middle(*plan.tokenizer,
                 fill_prompt(format.prompt, record.context, record.input, format.where), limit);
  TaskSample sample;
  sample.prompt = std::move(cut.text);
  sample.references = std::move(record.answers);
  sample.classes = std::move(record.classes);
  sample.max_new_tokens = format.max_new_tokens;
  sample.chat = set.chat;
  sample.facts["id"] = record.id;
  sample.facts["index"] = index;
  sample.facts["line"] = record.line;
  sample.facts["length"] = plan.length;
  if (record.length >= 0) sample.facts["data_length"] = record.length;  // words or characters
  sample.facts["tokens"] = cut.tokens;
  sample.facts["tokens_before"] = cut.tokens_before;
  sample.facts["truncated"] = cut.truncated;
  return sample;
}

void require_room(const TaskInfo& task, const TaskPlan& plan, int max_new_tokens) {
  MILLION_REQUIRE(plan.tokenizer != nullptr, ErrorCode::kUsage, "{}: needs a model's tokenizer",
                  task.name);
  const int64_t room = int64_t{plan.length} - max_new_tokens - plan.overhead_tokens;
  MILLION_REQUIRE(room >= kMinPromptTokens, ErrorCode::kUsage,
                  "{}: {} tokens leave {} for the prompt ({} are generated, {} stand around it); "
                  "give a length of at least {}",
                  task.name, plan.length, room, max_new_tokens, plan.overhead_tokens,
                  max_new_tokens + plan.overhead_tokens + kMinPromptTokens);
}

/// A file under another data set's name gives numbers without meaning; but the name in the line is
/// not read by LongBench either, so it is no error.
void warn_of_other_set(const TaskInfo& task, const LongBenchSet& set,
                       const LongBenchRecord& record) {
  if (record.dataset.empty() || record.dataset == set.name || record.dataset == file_name(task))
    return;
  spdlog::warn("{}: the record says data set \"{}\", the task is {}", record.where,
               valid_utf8(record.dataset.substr(0, 60)), task.name);
}

std::vector<TaskSample> make_longbench(const TaskInfo& task, const TaskPlan& plan) {
  const LongBenchSet& set = set_of(task);
  require_metric(task, set);
  const fs::path path = data_file(task, plan);
  const Format format = format_of(set, plan);
  require_room(task, plan, format.max_new_tokens);
  LongBenchReader reader(path, plan.skip_bad_lines);
  const auto accept = [&](const LongBenchRecord& record) { require_scorable(set, record); };
  std::vector<TaskSample> samples;
  while (plan.samples <= 0 || samples.size() < static_cast<std::size_t>(plan.samples)) {
    auto record = reader.next(accept);
    if (!record) break;
    if (samples.empty()) warn_of_other_set(task, set, *record);
    const auto index = static_cast<int64_t>(samples.size());
    samples.push_back(make_sample(set, format, plan, std::move(*record), index));
  }
  if (reader.skipped() > 0)
    spdlog::warn("{}: {} broken line{} skipped; the first: {}", path.string(), reader.skipped(),
                 reader.skipped() == 1 ? "" : "s", reader.first_skipped());
  MILLION_REQUIRE(!samples.empty(), ErrorCode::kBadInput,
                  "{}: no usable record in the file; expected one JSON object a line",
                  path.string());
  return samples;
}

double score_one(LongBenchMetric metric, std::string_view prediction, const std::string& reference,
                 const TaskSample& sample) {
  switch (metric) {
    case LongBenchMetric::kTokenF1:
      return token_f1(prediction, reference);
    case LongBenchMetric::kRougeL:
      return rouge_l(prediction, reference);
    case LongBenchMetric::kClassification:
      return classification_match(prediction, reference, sample.classes);
    case LongBenchMetric::kRetrieval:
    case LongBenchMetric::kRetrievalChinese:
      return number_match(prediction,
                          paragraph_number(reference, paragraph_word(metric)).value_or(""));
    case LongBenchMetric::kCount:
      return number_match(prediction, reference);
    case LongBenchMetric::kCode:
      return code_similarity(prediction, reference);
    case LongBenchMetric::kTokenF1Chinese:
    case LongBenchMetric::kRougeLChinese:
      break;
  }
  fail(ErrorCode::kUsage, "this metric needs a segmenter of Chinese words");
}

double score_longbench(const TaskInfo& task, std::string_view prediction,
                       const TaskSample& sample) {
  const LongBenchSet& set = set_of(task);
  require_metric(task, set);
  const std::string clean = valid_utf8(prediction);
  const std::string_view counted = set.first_line ? first_line(clean) : std::string_view(clean);
  double best = 0;
  for (const std::string& reference : sample.references)
    best = std::max(best, score_one(set.metric, counted, reference, sample));
  return best;
}

const char* metric_name(LongBenchMetric metric) {
  switch (metric) {
    case LongBenchMetric::kTokenF1:
      return "token F1";
    case LongBenchMetric::kRougeL:
      return "ROUGE-L";
    case LongBenchMetric::kClassification:
      return "classification accuracy";
    case LongBenchMetric::kRetrieval:
    case LongBenchMetric::kRetrievalChinese:
      return "retrieval accuracy";
    case LongBenchMetric::kCount:
      return "count accuracy";
    case LongBenchMetric::kCode:
      return "edit similarity";
    case LongBenchMetric::kTokenF1Chinese:
      return "token F1 (words by jieba: not available)";
    case LongBenchMetric::kRougeLChinese:
      return "ROUGE-L (words by jieba: not available)";
  }
  return "";
}

TaskInfo task_info(const LongBenchSet& set, bool extended) {
  TaskInfo task;
  task.name = fmt::format("{}{}{}", kPrefix, set.name, extended ? kExtended : "");
  task.summary = fmt::format("{}{}", set.kind, extended ? " (even lengths)" : "");
  task.source = extended ? "LongBench-E, THUDM/LongBench, arXiv 2308.14508"
                         : "LongBench v1, THUDM/LongBench, arXiv 2308.14508";
  task.metric = metric_name(set.metric);
  task.from_file = true;
  task.make = make_longbench;
  task.score = score_longbench;
  return task;
}

std::vector<TaskInfo> all_tasks() {
  std::vector<TaskInfo> tasks;
  for (const LongBenchSet& set : longbench_sets()) tasks.push_back(task_info(set, false));
  for (const LongBenchSet& set : longbench_sets())
    if (set.extended) tasks.push_back(task_info(set, true));
  return tasks;
}

}  // namespace

CutPrompt cut_middle(const Tokenizer& tokenizer, std::string_view prompt, int limit) {
  MILLION_REQUIRE(limit >= 2, ErrorCode::kUsage, "a prompt cannot be cut to {} tokens", limit);
  const std::vector<int32_t> ids = tokenizer.encode(prompt);
  const int n = static_cast<int>(ids.size());
  CutPrompt cut{std::string(prompt), n, n, false};
  if (n <= limit) return cut;
  cut.truncated = true;
  const std::span<const int32_t> all(ids);
  for (int half = limit / 2; half > 0; --half) {
    const auto count = static_cast<std::size_t>(half);
    cut.text = valid_utf8(tokenizer.decode(all.first(count))) +
               valid_utf8(tokenizer.decode(all.last(count)));
    cut.tokens = static_cast<int>(tokenizer.encode(cut.text).size());
    if (cut.tokens <= limit) return cut;
  }
  fail(ErrorCode::kUsage, "a prompt cannot be cut to {} tokens: one token becomes {}", limit,
       cut.tokens);
}

std::vector<fs::path> longbench_files(const TaskInfo& task, const fs::path& folder) {
  std::vector<fs::path> files;
  for (const fs::path& path :
       {find_below(folder, {"", "data"}, data_name(task)), setting_file(folder, kPromptFile),
        setting_file(folder, kLengthFile)})
    if (!path.empty()) files.push_back(path);
  return files;
}

std::span<const TaskInfo> longbench_tasks() {
  static const std::vector<TaskInfo> tasks = all_tasks();
  return tasks;
}

}  // namespace million

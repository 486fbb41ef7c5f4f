// SPDX-License-Identifier: Apache-2.0
// tokenizer.json and its neighbours. Source: tokenizers (Hugging Face) 0.23, the serialized forms
// of its models, normalizers and pre-tokenizers. Differs: an added token is searched in the text as
// it stands even where the file says "normalized".
#include "lib/core/error.h"
#include "lib/core/files.h"
#include "lib/core/printable.h"
#include "lib/model/hf_steps.h"
#include "lib/model/tokenizer_files.h"
#include "lib/model/vocabulary.h"

#include <algorithm>
#include <optional>

namespace million {
namespace {

constexpr uint64_t kMaxTokenizerBytes = uint64_t{256} << 20;
constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

/// Assembles the vocabulary: model.vocab and added_tokens, which may repeat entries of it.
class TokenTable {
 public:
  TokenTable(const TokenizerJson& json, const std::string& name, TokenizerData& data)
      : name_(name), data_(data) {
    const SortedJson none = SortedJson::array();
    const SortedJson& added = list_of(json.rest, "added_tokens", none, name);
    // Ids far beyond the number of entries would only make the table large.
    const std::size_t limit = 4 * (json.vocab.size() + added.size()) + 65536;
    int32_t last = -1;
    for (const auto& [text, id] : json.vocab) last = std::max(last, id);
    for (const SortedJson& token : added) last = std::max(last, id_of(token));
    MILLION_REQUIRE(static_cast<std::size_t>(last) < limit || last < 0, ErrorCode::kBadInput,
                    "{}: token id {} in a file of {} tokens", name, last,
                    json.vocab.size() + added.size());
    const auto n = static_cast<std::size_t>(last + 1);
    data_.tokens.resize(n);
    data_.types.resize(n, kUnused);
    for (const auto& [text, id] : json.vocab) put(text, id, kNormal);
    for (const SortedJson& token : added) add(token);
  }

 private:
  int32_t id_of(const SortedJson& token) const {
    const auto it = token.is_object() ? token.find("id") : token.end();
    const bool good = token.is_object() && it != token.end() && it->is_number_unsigned() &&
                      it->get<uint64_t>() < INT32_MAX;
    MILLION_REQUIRE(good, ErrorCode::kBadInput, "{}: an entry of added_tokens has no valid id",
                    name_);
    return it->get<int32_t>();
  }

  void put(const std::string& text, int32_t id, int32_t type) {
    std::string& place = data_.tokens[static_cast<std::size_t>(id)];
    MILLION_REQUIRE(place.empty() || place == text, ErrorCode::kBadInput,
                    "{}: token {} is \"{}\" and \"{}\"", name_, id, printable(place),
                    printable(text));
    MILLION_REQUIRE(!text.empty(), ErrorCode::kBadInput, "{}: token {} is empty", name_, id);
    place = text;
    data_.types[static_cast<std::size_t>(id)] = type;
  }

  void add(const SortedJson& token) {
    const auto content = text_of(token, "content", name_);
    MILLION_REQUIRE(content, ErrorCode::kBadInput, "{}: an entry of added_tokens has no content",
                    name_);
    const int32_t id = id_of(token);
    const auto flag = [&](const char* key) { return flag_of(token, key, false, name_); };
    MILLION_REQUIRE(!flag("single_word"), ErrorCode::kBadInput,
                    "{}: added token \"{}\" is marked single_word, which is not supported", name_,
                    printable(*content));
    put(*content, id, flag("special") ? kControl : kUserDefined);
    const int trims = (flag("lstrip") ? 1 : 0) + (flag("rstrip") ? 2 : 0);
    if (trims == 0) return;
    data_.trims.resize(data_.tokens.size());
    data_.trims[static_cast<std::size_t>(id)] = static_cast<uint8_t>(trims);
  }

  const std::string& name_;
  TokenizerData& data_;
};

int32_t find_token(const TokenizerData& data, std::string_view text) {
  const auto it = std::find(data.tokens.begin(), data.tokens.end(), text);
  return text.empty() || it == data.tokens.end() ? -1
                                                 : static_cast<int32_t>(it - data.tokens.begin());
}

/// The settings of the BPE model. Error(kBadInput) on another model and on options without meaning
/// for the families we read.
void read_model(const TokenizerJson& json, const std::string& name, TokenizerData& data) {
  const auto it = json.rest.find("model");
  MILLION_REQUIRE(it != json.rest.end() && it->is_object(), ErrorCode::kBadInput,
                  "{}: key model is missing or no object", name);
  const SortedJson& model = *it;
  const auto type = text_of(model, "type", name);
  MILLION_REQUIRE(type ? *type == "BPE" : !json.merges.empty(), ErrorCode::kBadInput,
                  "{}: the tokenizer is of type {}, supported: BPE (byte level and SentencePiece)",
                  name, type ? printable(*type) : "unknown");
  const auto dropout = model.find("dropout");
  MILLION_REQUIRE(dropout == model.end() || dropout->is_null() || *dropout == 0,
                  ErrorCode::kBadInput, "{}: model.dropout is set, which is not supported", name);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    MILLION_REQUIRE(text_of(model, key, name).value_or("").empty(), ErrorCode::kBadInput,
                    "{}: model.{} is set, which is not supported", name, key);
  data.whole_words = flag_of(model, "ignore_merges", false, name);
  data.fuse_unknown = flag_of(model, "fuse_unk", false, name);
  data.unknown = find_token(data, text_of(model, "unk_token", name).value_or(""));
  if (!flag_of(model, "byte_fallback", false, name)) return;
  for (std::size_t i = 0; i < data.tokens.size(); ++i)
    if (data.types[i] == kNormal && parse_byte_token(data.tokens[i]) >= 0) data.types[i] = kByte;
}

/// "bos_token": a text or an added token as an object.
std::optional<std::string> token_text(const SortedJson& config, const char* key,
                                      const std::string& name) {
  const auto it = config.find(key);
  if (it != config.end() && it->is_object()) return text_of(*it, "content", name);
  return text_of(config, key, name);
}

/// An id or a list of ids, none outside the vocabulary.
std::vector<int32_t> ids_of(const SortedJson& config, const char* key, const TokenizerData& data,
                            const std::string& name) {
  const auto it = config.find(key);
  if (it == config.end() || it->is_null()) return {};
  std::vector<int32_t> ids;
  for (const SortedJson& id : it->is_array() ? *it : SortedJson::array({*it})) {
    MILLION_REQUIRE(id.is_number_unsigned() && id.get<uint64_t>() < data.tokens.size(),
                    ErrorCode::kBadInput, "{}: key {} is {}, but the vocabulary has {} tokens",
                    name, key, printable(id.dump()), data.tokens.size());
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::optional<SortedJson> read_optional(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return std::nullopt;
  return read_json_object(path, kMaxConfigBytes);
}

void read_tokenizer_config(const SortedJson& config, const std::string& name, TokenizerData& data) {
  if (const auto text = token_text(config, "bos_token", name)) data.bos = find_token(data, *text);
  if (const auto text = token_text(config, "eos_token", name)) data.eos = find_token(data, *text);
  data.add_bos = flag_of(config, "add_bos_token", data.add_bos, name);
}

/// What the model says where the tokenizer is silent; a second end token ends a turn.
void read_model_config(const SortedJson& config, const std::string& name, TokenizerData& data) {
  const auto first = [](const std::vector<int32_t>& ids) { return ids.empty() ? -1 : ids[0]; };
  if (data.bos < 0) data.bos = first(ids_of(config, "bos_token_id", data, name));
  for (const int32_t id : ids_of(config, "eos_token_id", data, name)) {
    if (data.eos < 0)
      data.eos = id;
    else if (id != data.eos && data.eot < 0)
      data.eot = id;
  }
}

/// chat_template: a text, or a list of named ones of which "default" counts.
std::string chat_template_of(const SortedJson& config, const std::string& name) {
  const auto it = config.find("chat_template");
  if (it == config.end() || !it->is_array())
    return text_of(config, "chat_template", name).value_or("");
  for (const SortedJson& entry : *it)
    if (entry.is_object() && text_of(entry, "name", name) == "default")
      return text_of(entry, "template", name).value_or("");
  return "";
}

}  // namespace

TokenizerData parse_hf_tokenizer(std::string_view text, const std::string& name) {
  TokenizerData data;
  TokenizerJson json = parse_tokenizer_json(text, name);
  TokenTable(json, name, data);
  read_model(json, name, data);
  read_steps(json.rest, name, data);
  data.merges = std::move(json.merges);
  if (const auto bos = first_of_template(json.rest, name)) {
    data.bos = find_token(data, *bos);
    MILLION_REQUIRE(data.bos >= 0, ErrorCode::kBadInput,
                    "{}: the post_processor puts \"{}\" first, which is no token", name,
                    printable(*bos));
    data.add_bos = true;
  }
  return data;
}

TokenizerData read_hf_tokenizer(const std::filesystem::path& folder, std::string* chat_template) {
  const auto path = folder / "tokenizer.json";
  MILLION_REQUIRE(std::filesystem::exists(path), ErrorCode::kBadInput,
                  "{}: no tokenizer.json here; a folder with tokenizer.model or vocab.json alone "
                  "must be converted first (transformers: AutoTokenizer.save_pretrained)",
                  folder.string());
  TokenizerData data = parse_hf_tokenizer(read_file(path, kMaxTokenizerBytes), path.string());
  std::string text;
  const auto config_path = folder / "tokenizer_config.json";
  if (const auto config = read_optional(config_path)) {
    read_tokenizer_config(*config, config_path.string(), data);
    text = chat_template_of(*config, config_path.string());
  }
  const auto model_path = folder / "config.json";
  if (const auto config = read_optional(model_path))
    read_model_config(*config, model_path.string(), data);
  const auto template_path = folder / "chat_template.jinja";
  if (std::filesystem::exists(template_path)) text = read_file(template_path, kMaxConfigBytes);
  if (chat_template != nullptr) *chat_template = std::move(text);
  MILLION_REQUIRE(!data.add_bos || data.bos >= 0, ErrorCode::kBadInput,
                  "{}: add_bos_token is set, but no token begins a text", config_path.string());
  return data;
}

}  // namespace million

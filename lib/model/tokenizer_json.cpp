// SPDX-License-Identifier: Apache-2.0
#include "lib/model/tokenizer_json.h"

#include "lib/core/error.h"
#include "lib/core/printable.h"

#include <limits>

namespace million {
namespace {

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxValues = 1'000'000;

/// Takes the events of the parser; returns true to go on, as its interface wants it.
class Builder final : public nlohmann::json_sax<SortedJson> {
 public:
  explicit Builder(const std::string& name) : name_(name) {}
  TokenizerJson result;

  bool null() override { return scalar(nullptr); }
  bool boolean(bool value) override { return scalar(value); }
  bool number_integer(number_integer_t value) override { return scalar(value); }
  bool number_unsigned(number_unsigned_t value) override {
    if (place() != Place::kVocab) return scalar(value);
    require(value <= std::numeric_limits<int32_t>::max(), "an id beyond 2^31");
    result.vocab.emplace_back(std::move(key_), static_cast<int32_t>(value));
    return true;
  }
  bool number_float(number_float_t value, const string_t&) override { return scalar(value); }
  bool string(string_t& value) override;
  bool binary(binary_t&) override { return true; }  // JSON text has none
  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }
  bool start_object(std::size_t) override { return start(SortedJson::object(), Place::kVocab); }
  bool start_array(std::size_t) override { return start(SortedJson::array(), Place::kMerges); }
  bool end_object() override { return end(); }
  bool end_array() override;
  bool parse_error(std::size_t at, const std::string&,
                   const nlohmann::detail::exception& e) override {
    fail(ErrorCode::kBadInput, "{}: not JSON at byte {}: {}", name_, at, printable(e.what()));
  }

 private:
  enum class Place { kTree, kVocab, kMerges, kPair, kSkipped };
  struct Frame {
    Place place;
    SortedJson* node;  // of kTree
    std::string key;   // under which it stands
  };

  Place place() const { return frames_.empty() ? Place::kTree : frames_.back().place; }
  void require(bool good, const char* what) const {
    MILLION_REQUIRE(good, ErrorCode::kBadInput, "{}: {} has {} at {}", name_, where(), what,
                    frames_.empty() || frames_.back().place == Place::kVocab
                        ? "\"" + printable(key_) + "\""
                        : "entry " + std::to_string(result.merges.size()));
  }
  const char* where() const {
    switch (place()) {
      case Place::kVocab:
        return "model.vocab";
      case Place::kMerges:
      case Place::kPair:
        return "model.merges";
      default:
        return "the document";
    }
  }
  bool in_model(std::string_view key) const {
    return frames_.size() == 2 && frames_.back().key == "model" && key_ == key;
  }
  SortedJson* put(SortedJson value);
  bool scalar(SortedJson value);
  bool start(SortedJson value, Place special);
  bool end() {
    frames_.pop_back();
    return true;
  }

  const std::string& name_;
  std::vector<Frame> frames_;
  std::string key_;
  std::vector<std::string> pair_;
  std::size_t n_values_ = 0;
};

/// Adds a value to the object or list that is open, or makes it the document.
SortedJson* Builder::put(SortedJson value) {
  MILLION_REQUIRE(++n_values_ <= kMaxValues, ErrorCode::kBadInput,
                  "{}: more than {} values outside of vocabulary and merges", name_, kMaxValues);
  if (frames_.empty()) return &(result.rest = std::move(value));
  SortedJson& parent = *frames_.back().node;
  if (parent.is_array()) {
    parent.push_back(std::move(value));
    return &parent.back();
  }
  const auto [at, fresh] = parent.emplace(key_, std::move(value));
  MILLION_REQUIRE(fresh, ErrorCode::kBadInput, "{}: key \"{}\" stands twice in one object", name_,
                  printable(key_));
  return &at.value();
}

bool Builder::scalar(SortedJson value) {
  switch (place()) {
    case Place::kVocab:
      require(false, "something else than an id from 0");
      break;
    case Place::kMerges:
    case Place::kPair:
      require(false, "something else than a text");
      break;
    case Place::kSkipped:
      break;
    case Place::kTree:
      put(std::move(value));
      break;
  }
  return true;
}

bool Builder::string(string_t& value) {
  switch (place()) {
    case Place::kMerges:
      result.merges.push_back(std::move(value));
      return true;
    case Place::kPair:
      require(!value.empty() && value.find(' ') == std::string::npos,
              "an empty token or one with a space");
      require(pair_.size() < 2, "more than two tokens");
      pair_.push_back(std::move(value));
      return true;
    default:
      return scalar(std::move(value));
  }
}

/// `special` is what model.vocab or model.merges is when it has this shape.
bool Builder::start(SortedJson value, Place special) {
  MILLION_REQUIRE(frames_.size() < kMaxDepth, ErrorCode::kBadInput,
                  "{}: nested deeper than {} levels", name_, kMaxDepth);
  const bool list = special == Place::kMerges;
  if (place() == Place::kMerges && list) {
    pair_.clear();
    frames_.push_back({Place::kPair, nullptr, ""});
  } else if (place() == Place::kSkipped) {
    frames_.push_back({Place::kSkipped, nullptr, ""});
  } else if (place() != Place::kTree) {
    require(false, list ? "a list" : "an object");
  } else if (in_model("vocab") || in_model("merges")) {
    const bool fits = in_model("vocab") ? !list : list;
    put(nullptr);  // so that a second one is seen
    frames_.push_back({fits ? special : Place::kSkipped, nullptr, key_});
  } else {
    SortedJson* node = put(std::move(value));
    frames_.push_back({Place::kTree, node, key_});
  }
  return true;
}

bool Builder::end_array() {
  if (place() == Place::kPair) {
    require(pair_.size() == 2, "fewer than two tokens");
    result.merges.push_back(pair_[0] + " " + pair_[1]);
  }
  return end();
}

}  // namespace

TokenizerJson parse_tokenizer_json(std::string_view text, const std::string& name) {
  Builder builder(name);
  SortedJson::sax_parse(text.begin(), text.end(), &builder);
  MILLION_REQUIRE(builder.result.rest.is_object(), ErrorCode::kBadInput,
                  "{}: the document is no object", name);
  return std::move(builder.result);
}

}  // namespace million

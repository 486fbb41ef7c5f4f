// SPDX-License-Identifier: Apache-2.0
#include "lib/model/chat.h"

#include "lib/core/error.h"

namespace million {
namespace {

/// Collects marks and text. Text between two marks is encoded in one go, so that words join across
/// the pieces it was added in, exactly as in the template's output.
class ChatEncoder {
 public:
  explicit ChatEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void mark(std::string_view name) {
    const int32_t id = tokenizer_.find(name);
    MILLION_REQUIRE(id >= 0, ErrorCode::kBadInput,
                    "the chat template uses {}, but the vocabulary has no such token; use "
                    "--no-chat-template to send plain text",
                    name);
    flush();
    ids_.push_back(id);
  }
  void text(std::string_view s) { pending_ += s; }
  std::vector<int32_t> finish() {
    flush();
    return std::move(ids_);
  }

 private:
  void flush() {
    const auto ids = tokenizer_.encode(pending_);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    pending_.clear();
  }
  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  std::string pending_;
};

bool has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

/// The text of a literal "<|im_start|>system\nTEXT<|im_end|>" in a ChatML template. The newline may
/// stand there as itself or as the two characters \n.
std::string chatml_default_system(std::string_view jinja) {
  constexpr std::string_view kHead = "<|im_start|>system", kTail = "<|im_end|>";
  for (auto at = jinja.find(kHead); at != std::string_view::npos; at = jinja.find(kHead, at + 1)) {
    std::string_view rest = jinja.substr(at + kHead.size());
    if (rest.starts_with("\\n"))
      rest.remove_prefix(2);
    else if (rest.starts_with('\n'))
      rest.remove_prefix(1);
    else
      continue;
    const auto text = rest.substr(0, rest.find(kTail));
    // A quote or a brace ends the literal: what follows is computed, not a default.
    const bool literal =
        text.size() < rest.size() && text.find_first_of("'\"{}") == std::string_view::npos;
    if (literal && !text.empty()) return std::string(text);
  }
  return {};
}

std::string_view trimmed(std::string_view s) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  const auto first = s.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return s.substr(first, s.find_last_not_of(kSpace) - first + 1);
}

void add_turn_head(ChatEncoder& out, ChatFormat::Style style, std::string_view role) {
  if (style == ChatFormat::Style::kChatMl) {
    out.mark("<|im_start|>");
    out.text(role);
    out.text("\n");
  } else if (style == ChatFormat::Style::kLlama3) {
    out.mark("<|start_header_id|>");
    out.text(role);
    out.mark("<|end_header_id|>");
    out.text("\n\n");
  }
}

void add_turn(ChatEncoder& out, ChatFormat::Style style, std::string_view role,
              std::string_view content) {
  add_turn_head(out, style, role);
  if (style == ChatFormat::Style::kChatMl) {
    out.text(content);
    out.mark("<|im_end|>");
    out.text("\n");
  } else if (style == ChatFormat::Style::kLlama3) {
    out.text(trimmed(content));
    out.mark("<|eot_id|>");
  } else {
    out.text(content);
    out.text("\n");
  }
}

}  // namespace

ChatFormat detect_chat_format(std::string_view jinja) {
  ChatFormat format;
  MILLION_REQUIRE(!jinja.empty(), ErrorCode::kBadInput,
                  "the model file has no chat template; use --no-chat-template to send plain text, "
                  "or take an instruction-tuned model");
  if (has(jinja, "<|im_start|>") && has(jinja, "<|im_end|>")) {
    format.style = ChatFormat::Style::kChatMl;
    format.default_system = chatml_default_system(jinja);
    return format;
  }
  MILLION_REQUIRE(has(jinja, "<|start_header_id|>") && has(jinja, "<|eot_id|>"),
                  ErrorCode::kBadInput,
                  "the model's chat template is neither ChatML nor Llama-3; use "
                  "--no-chat-template and write the model's marks into the text yourself");
  format.style = ChatFormat::Style::kLlama3;
  return format;
}

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatFormat& format,
                                 std::span<const ChatMessage> messages,
                                 const ChatOptions& options) {
  MILLION_REQUIRE(!messages.empty(), ErrorCode::kUsage, "a conversation needs a message");
  ChatEncoder out(tokenizer);
  if (format.style == ChatFormat::Style::kLlama3) out.mark("<|begin_of_text|>");
  const bool insert = options.default_system && !format.default_system.empty();
  if (insert && messages[0].role != "system")
    add_turn(out, format.style, "system", format.default_system);
  for (const ChatMessage& m : messages) {
    const bool known = m.role == "system" || m.role == "user" || m.role == "assistant";
    MILLION_REQUIRE(known, ErrorCode::kUsage,
                    "chat role \"{}\" is not known, expected system, user or assistant", m.role);
    add_turn(out, format.style, m.role, m.content);
  }
  if (options.answer_follows) add_turn_head(out, format.style, "assistant");
  return out.finish();
}

}  // namespace million

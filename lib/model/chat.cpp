// SPDX-License-Identifier: Apache-2.0
#include "lib/model/chat.h"

#include "lib/core/error.h"

#include <algorithm>
#include <optional>

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
    id_of_mark(id);
  }
  /// The same for a mark that some vocabularies have and others spell.
  void mark_or_text(std::string_view name) {
    const int32_t id = tokenizer_.find(name);
    if (tokenizer_.is_control(id))
      id_of_mark(id);
    else
      text(name);
  }
  void begin_sequence() { named_end(tokenizer_.bos(), "beginning-of-sequence"); }
  void end_sequence() { named_end(tokenizer_.eos(), "end-of-sequence"); }
  void text(std::string_view s) { pending_ += s; }
  std::vector<int32_t> finish() {
    flush();
    return std::move(ids_);
  }

 private:
  void id_of_mark(int32_t id) {
    flush();
    ids_.push_back(id);
  }
  void named_end(int32_t id, const char* what) {
    MILLION_REQUIRE(id >= 0, ErrorCode::kBadInput,
                    "the chat template uses the {} token, but the tokenizer names none; use "
                    "--no-chat-template to send plain text",
                    what);
    id_of_mark(id);
  }
  void flush() {
    const auto start = ids_.empty() ? TextStart::kText : TextStart::kAfterSpecial;
    const auto ids = tokenizer_.encode(pending_, false, start);
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

/// From behind `mark` to the end of the line or literal; empty without the mark.
std::string_view line_after(std::string_view jinja, std::string_view mark) {
  const auto at = jinja.find(mark);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = jinja.substr(at + mark.size());
  return rest.substr(0, rest.find_first_of("\\\n\"'"));
}

/// The two dates before a system message of Llama 3.1 to 3.3.
std::string llama3_system_head(std::string_view jinja) {
  constexpr std::string_view kCutting = "Cutting Knowledge Date: ", kToday = "Today Date: ";
  if (!has(jinja, kCutting)) return {};
  const std::string_view cutting = line_after(jinja, kCutting);
  std::string_view today = line_after(jinja, kToday);  // empty where a variable follows
  if (today.empty()) today = line_after(jinja, "date_string = \"");
  MILLION_REQUIRE(!cutting.empty() && !today.empty(), ErrorCode::kBadInput,
                  "the model's chat template writes a date, but no literal date_string is in it; "
                  "use --no-chat-template and write the model's marks into the text yourself");
  return fmt::format("{}{}\n{}{}\n\n", kCutting, cutting, kToday, today);
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
  } else if (style == ChatFormat::Style::kZephyr) {
    out.mark_or_text("<|" + std::string(role) + "|>");
    out.text("\n");
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
  } else if (style == ChatFormat::Style::kZephyr) {
    out.text(content);
    out.end_sequence();
    out.text("\n");
  } else {
    out.text(content);
    out.text("\n");
  }
}

/// `text` with the mark in it as a token or text.
void add_around_mark(ChatEncoder& out, std::string_view text, std::string_view mark) {
  const auto at = text.find(mark);
  MILLION_ASSERT(at != std::string_view::npos);
  out.text(text.substr(0, at));
  out.mark_or_text(mark);
  out.text(text.substr(at + mark.size()));
}

/// The content of each user message with the system message where the template puts it.
std::vector<std::string> inst_contents(const InstTurns& inst, std::span<const ChatMessage> messages,
                                       std::string_view system) {
  std::vector<std::string> contents;
  std::size_t first = messages.size(), last = messages.size();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    contents.push_back(messages[i].content);
    if (messages[i].role != "user") continue;
    first = std::min(first, i);
    last = i;
  }
  if (system.empty()) return contents;
  MILLION_REQUIRE(inst.system != InstTurns::System::kNone, ErrorCode::kUsage,
                  "the model's chat template takes no system message; put it into the first "
                  "user message");
  MILLION_REQUIRE(last < messages.size(), ErrorCode::kUsage,
                  "a system message needs a user message behind it in this chat format");
  std::string& at = contents[inst.system == InstTurns::System::kLast ? last : first];
  at = inst.system == InstTurns::System::kMarks
           ? fmt::format("<<SYS>>\n{}\n<</SYS>>\n\n{}", system, at)
           : fmt::format("{}\n\n{}", system, at);
  return contents;
}

void add_inst_turns(ChatEncoder& out, const InstTurns& inst,
                    std::span<const ChatMessage> messages) {
  std::string_view system;
  if (messages[0].role == "system") {
    system = messages[0].content;
    messages = messages.subspan(1);
  }
  const auto contents = inst_contents(inst, messages, system);
  if (inst.bos && !inst.bos_each_turn) out.begin_sequence();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const bool trims = messages[i].role == "user" ? inst.trims_user : inst.trims_answer;
    const std::string_view content = trims ? trimmed(contents[i]) : contents[i];
    MILLION_REQUIRE(messages[i].role != "system", ErrorCode::kUsage,
                    "in this chat format a system message can only come first");
    if (messages[i].role == "user") {
      if (inst.bos_each_turn) out.begin_sequence();
      add_around_mark(out, inst.user_head, "[INST]");
      out.text(content);
      add_around_mark(out, inst.user_tail, "[/INST]");
    } else {
      out.text(inst.answer_head);
      out.text(content);
      out.text(inst.answer_tail);
      out.end_sequence();
      out.text(inst.after_answer);
    }
  }
}

/// A template with one kind of quote and no white space around + and |, to find pieces of it.
std::string compact(std::string_view jinja) {
  std::string out;
  for (std::size_t i = 0; i < jinja.size(); ++i) {
    const char c = jinja[i] == '"' ? '\'' : jinja[i];
    const auto next = jinja.find_first_not_of(" \n\t", i);
    const bool space = c == ' ' || c == '\n' || c == '\t';
    const bool before =
        next != std::string_view::npos && (jinja[next] == '+' || jinja[next] == '|');
    if (!space || !(before || out.ends_with('+') || out.ends_with('|'))) out.push_back(c);
  }
  return out;
}

/// The quoted literal of a compact template that holds `mark`; empty when there is none.
std::string_view literal_with(std::string_view jinja, std::string_view mark) {
  for (auto at = jinja.find(mark); at != std::string_view::npos; at = jinja.find(mark, at + 1)) {
    const auto open = jinja.rfind('\'', at), close = jinja.find('\'', at);
    if (open == std::string_view::npos || close == std::string_view::npos) continue;
    const auto text = jinja.substr(open + 1, close - open - 1);
    if (text.find_first_of("{}\\\n") == std::string_view::npos) return text;
  }
  return {};
}

/// True when a compact template joins `next` to something trimmed.
bool trims_before(const std::string& jinja, const std::string& next) {
  return has(jinja, ".strip()+" + next) || has(jinja, "|trim+" + next) ||
         has(jinja, "|trim)+" + next);
}

/// The turns of a template with [INST] literals, or nothing when it does not build them from quoted
/// pieces as the published ones do.
std::optional<InstTurns> detect_inst(std::string_view jinja) {
  const std::string text = compact(jinja);
  InstTurns inst;
  inst.user_head = literal_with(text, "[INST]");
  inst.user_tail = literal_with(text, "[/INST]");
  if (inst.user_head.empty() || inst.user_tail.empty() || !has(text, "eos_token"))
    return std::nullopt;
  for (const char* content : {"message['content']", "message.content", "content"})
    if (has(text, "' '+" + std::string(content))) inst.answer_head = " ";
  if (has(text, "' '+eos_token")) inst.answer_tail = " ";
  if (has(text, "eos_token+' '")) inst.after_answer = " ";
  inst.bos = has(text, "bos_token");
  inst.bos_each_turn = has(text, "bos_token+'" + inst.user_head);
  inst.trims_user = trims_before(text, "'" + inst.user_tail);
  inst.trims_answer = trims_before(text, "eos_token") || trims_before(text, "' '+eos_token");
  if (has(text, "<<SYS>>"))
    inst.system = InstTurns::System::kMarks;
  else if (has(text, "loop.last and system_message"))
    inst.system = InstTurns::System::kLast;
  else if (has(text, "system_message"))
    inst.system = InstTurns::System::kFirst;
  return inst;
}

/// <|role|> newline content end-of-sequence: other families write <|user|> with other ends.
bool is_zephyr(std::string_view jinja) {
  const std::string text = compact(jinja);
  const bool ends =
      has(text, "message['content']+eos_token") || has(text, "message.content+eos_token");
  return ends && has(text, "<|user|>") && has(text, "<|assistant|>") && !has(text, "<|end|>");
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
  if (has(jinja, "<|start_header_id|>") && has(jinja, "<|eot_id|>")) {
    format.style = ChatFormat::Style::kLlama3;
    format.system_head = llama3_system_head(jinja);
  } else if (const auto inst = detect_inst(jinja)) {
    format.style = ChatFormat::Style::kInst;
    format.inst = *inst;
  } else {
    MILLION_REQUIRE(is_zephyr(jinja), ErrorCode::kBadInput,
                    "the model's chat template is none that is known (ChatML, Llama-3, Llama-2, "
                    "Mistral, Zephyr); use --no-chat-template and write the model's marks into the "
                    "text yourself");
    format.style = ChatFormat::Style::kZephyr;
  }
  return format;
}

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatFormat& format,
                                 std::span<const ChatMessage> messages,
                                 const ChatOptions& options) {
  MILLION_REQUIRE(!messages.empty(), ErrorCode::kUsage, "a conversation needs a message");
  for (const ChatMessage& m : messages) {
    const bool known = m.role == "system" || m.role == "user" || m.role == "assistant";
    MILLION_REQUIRE(known, ErrorCode::kUsage,
                    "chat role \"{}\" is not known, expected system, user or assistant", m.role);
  }
  ChatEncoder out(tokenizer);
  if (format.style == ChatFormat::Style::kInst) {  // the user's tail asks for the answer
    add_inst_turns(out, format.inst, messages);
    return out.finish();
  }
  const bool marks_follow =
      format.style == ChatFormat::Style::kChatMl || format.style == ChatFormat::Style::kZephyr;
  if (marks_follow && tokenizer.add_bos()) out.begin_sequence();
  if (format.style == ChatFormat::Style::kLlama3) out.mark("<|begin_of_text|>");
  if (options.default_system && !format.system_head.empty()) {
    const bool given = messages[0].role == "system";
    add_turn_head(out, format.style, "system");
    out.text(format.system_head);
    if (given) out.text(trimmed(messages[0].content));
    out.mark("<|eot_id|>");
    messages = messages.subspan(given ? 1 : 0);
  }
  const bool insert = options.default_system && !format.default_system.empty();
  if (insert && !messages.empty() && messages[0].role != "system")
    add_turn(out, format.style, "system", format.default_system);
  for (const ChatMessage& m : messages) add_turn(out, format.style, m.role, m.content);
  if (options.answer_follows) add_turn_head(out, format.style, "assistant");
  return out.finish();
}

}  // namespace million

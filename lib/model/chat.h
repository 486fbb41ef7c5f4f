// SPDX-License-Identifier: Apache-2.0
// Chat formats. A model file carries its format as a Jinja template; we recognise the families we
// know by their marks and build the text ourselves, there is no template engine.
#pragma once

#include "lib/model/tokenizer.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace million {

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// What stands around the contents of a [INST] conversation; templates differ in spaces and in the
/// place of the system message.
struct InstTurns {
  std::string user_head = "[INST] ", user_tail = " [/INST]";
  std::string answer_head, answer_tail;  ///< before the content; between it and </s>
  std::string after_answer;              ///< behind </s>
  bool bos = true, bos_each_turn = false;
  bool trims_user = false, trims_answer = false;  ///< contents lose their outer white space
  enum class System {
    kNone,   ///< the template has no place for it
    kMarks,  ///< <<SYS>>\n...\n<</SYS>>\n\n before the first user message
    kFirst,  ///< text and an empty line before the first user message
    kLast    ///< the same before the last one
  } system = System::kNone;
};

struct ChatFormat {
  enum class Style {
    kChatMl,  ///< <|im_start|>role\ncontent<|im_end|>\n
    kLlama3,  ///< <|begin_of_text|>, then
              ///< <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>
    kInst,    ///< Llama 2, Mistral: <s>[INST] user [/INST] assistant</s>; see InstTurns
    kZephyr,  ///< Zephyr, TinyLlama: <|role|>\ncontent</s>\n
    kPlain    ///< contents joined by newlines, no marks; for base models
  } style = Style::kPlain;
  /// System message that the template puts first when the conversation has none; empty: it does
  /// not.
  std::string default_system{};
  /// What the template writes before any system message in a system turn of its own: the dates of
  /// Llama 3.1 to 3.3. Today's date is the template's literal, never the clock. Empty: none.
  std::string system_head{};
  InstTurns inst{};  ///< of kInst
};

/// Recognises a template. Error(kBadInput) on an unknown or empty one; the message names
/// --no-chat-template, which stands for ChatFormat{} (plain).
ChatFormat detect_chat_format(std::string_view jinja);

struct ChatOptions {
  /// Insert the template's default system message when the first message is not a system message,
  /// and its system_head before any, as the template does. The golden greedy case
  /// (tests/golden/logits.json) was made without: one user message alone.
  bool default_system = true;
  bool answer_follows = true;  ///< end with the head of the assistant's turn
};

/// Token ids of a conversation. Only the marks become control tokens: text in a message that looks
/// like a mark stays text. The marks [INST], <|user|> and their like are text where the vocabulary
/// has no control token for them, as in Llama 2; then a message can forge them. ChatML and Zephyr
/// begin with the beginning-of-sequence token where the tokenizer adds one to any text, as
/// llama.cpp does it. Error(kUsage) on an unknown role, no message, or a system message that the
/// format has no place for; Error(kBadInput) when the vocabulary lacks a mark.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatFormat& format,
                                 std::span<const ChatMessage> messages,
                                 const ChatOptions& options = {});

}  // namespace million

#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/chat/conversation.h"
#include "gateway/text/tokenizer.h"

// Conversations to prompts, one builder per published DeepSeek template (spec 7.3).
//
// A prompt is built from typed segments: control tokens, which only a template writes, and text, which is encoded
// without recognising control tokens.  So nothing that a person, a tool or a document says can become a control token:
// what looks like
// `<｜Assistant｜>` in a message stays ordinary text.

namespace weir::gateway {

// Texts between two control tokens are one segment: they are encoded in one piece, as the published templates do.
struct PromptSegment {
  bool is_control = false;
  std::string text;  // of a control token: its exact text, "<｜User｜>"
};

// The three dialects.  kV3: V3, V3-0324.  kR1: R1, R1-0528; always thinks.  kV31: V3.1, V3.1-Terminus; thinks when
// asked.
enum class ChatDialect { kV3, kR1, kV31 };

class ChatTemplate {
 public:
  // INVALID_ARGUMENT names the control tokens that the tokenizer lacks.  The tokenizer must outlive the template.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(ChatDialect dialect, const Tokenizer* tokenizer);

  // "deepseek_v3", "deepseek_r1", "deepseek_v31"; INVALID_ARGUMENT lists them.
  static absl::StatusOr<ChatDialect> DialectByName(std::string_view name);
  static std::string_view Name(ChatDialect dialect);

  ChatDialect dialect() const { return dialect_; }
  bool can_think() const { return dialect_ != ChatDialect::kV3; }
  // The answer begins inside its reasoning.
  bool ThinksFirst(const Conversation& conversation) const {
    return dialect_ == ChatDialect::kR1 || (dialect_ == ChatDialect::kV31 && conversation.thinking);
  }

  std::vector<PromptSegment> Segments(const Conversation& conversation) const;
  absl::StatusOr<std::vector<TokenId>> Encode(const std::vector<PromptSegment>& segments) const;
  // For people; encoding it again need not give the same ids.
  static std::string RenderedText(const std::vector<PromptSegment>& segments);

 private:
  ChatTemplate(ChatDialect dialect, const Tokenizer* tokenizer) : dialect_(dialect), tokenizer_(tokenizer) {}

  ChatDialect dialect_;
  const Tokenizer* tokenizer_;
};

// Control tokens of the V3 family.
namespace control {
inline constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUser = "<｜User｜>";
inline constexpr std::string_view kAssistant = "<｜Assistant｜>";
inline constexpr std::string_view kThink = "<think>";
inline constexpr std::string_view kEndThink = "</think>";
inline constexpr std::string_view kToolCallsBegin = "<｜tool▁calls▁begin｜>";
inline constexpr std::string_view kToolCallsEnd = "<｜tool▁calls▁end｜>";
inline constexpr std::string_view kToolCallBegin = "<｜tool▁call▁begin｜>";
inline constexpr std::string_view kToolCallEnd = "<｜tool▁call▁end｜>";
inline constexpr std::string_view kToolOutputsBegin = "<｜tool▁outputs▁begin｜>";
inline constexpr std::string_view kToolOutputsEnd = "<｜tool▁outputs▁end｜>";
inline constexpr std::string_view kToolOutputBegin = "<｜tool▁output▁begin｜>";
inline constexpr std::string_view kToolOutputEnd = "<｜tool▁output▁end｜>";
inline constexpr std::string_view kToolSep = "<｜tool▁sep｜>";
}  // namespace control

}  // namespace weir::gateway

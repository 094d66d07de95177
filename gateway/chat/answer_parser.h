#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/chat/chat_template.h"
#include "gateway/text/stop_strings.h"
#include "gateway/text/tokenizer.h"
#include "gateway/text/utf8.h"

// The tokens of an answer, to what a client sees: reasoning, content, tool calls (spec 7.4).  Markup is found by token
// id, never by text: an answer that spells "</think>" in letters stays content.

namespace weir::gateway {

struct AnswerDelta {
  enum class Kind { kReasoning, kContent, kToolCallBegin, kToolCallArguments } kind = Kind::kContent;
  std::string text;        // kReasoning, kContent, kToolCallArguments: to append; kToolCallBegin: the function's name
  int32_t call_index = 0;  // kToolCall*
};

// One answer.  Not thread-safe.
class AnswerParser {
 public:
  struct Options {
    bool thinks_first = false;      // begins inside the reasoning
    bool splits_markup = true;      // false: everything is content, as plain generation shows it
    std::vector<std::string> stop;  // looked for in content
  };
  // The tokenizer must outlive the parser.  `dialect` says how a tool call is written.
  AnswerParser(const Tokenizer* tokenizer, ChatDialect dialect, const Options& options);

  // Appends what the token brings to `deltas`: often nothing or one.  True when a stop text is complete: take no more
  // tokens.
  bool Append(TokenId token, std::vector<AnswerDelta>& deltas);
  // No more tokens come: what was held back.
  void Finish(std::vector<AnswerDelta>& deltas);

  int32_t num_reasoning_tokens() const { return num_reasoning_tokens_; }
  int32_t num_tool_calls() const { return num_tool_calls_; }
  const std::optional<std::string>& stop_found() const { return stops_.found(); }

 private:
  enum class State {
    kReasoning,
    kContent,
    kBetweenCalls,  // inside the block of calls, outside a call
    kCallHead,      // before the separator
    kCallBody,      // after it
    kAfterCalls,    // the block is closed
  };

  bool TakeMarkup(TokenId token, std::vector<AnswerDelta>& deltas);
  void BeginCallBody();
  void EndCall(std::vector<AnswerDelta>& deltas);
  bool TakeText(std::string_view text, std::vector<AnswerDelta>& deltas);
  void TakeReasoning(std::string_view text, std::vector<AnswerDelta>& deltas);
  bool TakeContent(std::string_view text, std::vector<AnswerDelta>& deltas);
  void TakeCallBody(std::string_view text, std::vector<AnswerDelta>& deltas);
  void FlushText(std::vector<AnswerDelta>& deltas);
  void EmitArguments(std::string_view text, std::vector<AnswerDelta>& deltas);

  const Tokenizer* tokenizer_;
  ChatDialect dialect_;
  bool splits_markup_;
  State state_;
  Utf8Stream utf8_;
  StopStrings stops_;
  bool has_text_ = false;      // of the current reasoning or content: leading newlines are gone
  std::string held_newlines_;  // at the end of reasoning: dropped when it ends there
  std::string call_head_;
  std::string call_body_;  // not yet emitted
  bool name_is_known_ = false;
  int32_t num_reasoning_tokens_ = 0;
  int32_t num_tool_calls_ = 0;

  struct Markup {
    TokenId think = -1, end_think = -1, calls_begin = -1, calls_end = -1, call_begin = -1, call_end = -1,
            separator = -1, eos = -1;
  } markup_;
};

}  // namespace weir::gateway

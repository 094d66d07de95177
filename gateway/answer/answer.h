#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/answer/frames.h"
#include "gateway/chat/answer_parser.h"
#include "gateway/text/tokenizer.h"

// The output tokens of one request, to frames.  Every token is in exactly one TextFrame, in order; its text is in the
// same frame or in a later one.  Not thread-safe.

namespace weir::gateway {

class Answer {
 public:
  // The tokenizer must outlive it.
  Answer(const Tokenizer* tokenizer, ChatDialect dialect, const AnswerParser::Options& options,
         std::shared_ptr<const Submission> submission);

  // Appends to `frames`, which hold what has come since they were last taken away: text of one kind is joined to the
  // last frame.  True when a stop text is complete: take no more tokens.
  bool Append(OutputToken token, std::vector<Frame>& frames);
  // No more tokens come: what was held back.
  void Finish(std::vector<Frame>& frames);

  uint32_t num_tokens() const { return num_tokens_; }
  uint32_t num_reasoning_tokens() const { return static_cast<uint32_t>(parser_.num_reasoning_tokens()); }
  int32_t num_tool_calls() const { return parser_.num_tool_calls(); }

 private:
  TextFrame& Open(bool is_reasoning, std::vector<Frame>& frames) const;
  void Take(AnswerDelta& delta, std::vector<Frame>& frames);
  void Place(std::optional<OutputToken>& token, std::vector<Frame>& frames);

  AnswerParser parser_;
  const std::shared_ptr<const Submission> submission_;
  bool is_reasoning_;  // the kind of the last text
  uint32_t num_tokens_ = 0;
  std::vector<AnswerDelta> deltas_;
};

}  // namespace weir::gateway

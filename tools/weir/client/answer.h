#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "weir/v1/inference.pb.h"

// A streamed answer, put together from its messages, with the times at which they came.

namespace weir::tools {

class Answer {
 public:
  using Clock = std::chrono::steady_clock;
  struct ToolCall {
    std::string id, name, arguments;
  };

  explicit Answer(Clock::time_point asked_at) : asked_at_(asked_at) {}

  void Add(const v1::ChatResponse& event, Clock::time_point now);
  void Add(const v1::GenerateResponse& event, Clock::time_point now);

  const std::string& reasoning() const { return reasoning_; }
  const std::string& text() const { return text_; }
  const std::vector<ToolCall>& tool_calls() const { return tool_calls_; }
  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_.size()); }
  // Nothing when the stream ended without.
  const std::optional<v1::Finished>& finished() const { return finished_; }
  const std::vector<uint32_t>& token_ids() const { return token_ids_; }

  // From the question to the first token, in seconds; nothing before it came.
  std::optional<double> ttft_s() const;
  // Tokens after the first per second between first and last; nothing for fewer than two.
  std::optional<double> tokens_per_s() const;

  // "41 tokens, 0.12 s to the first, 88.1 tokens/s, 0.58 s in all; seed 17", for people; with the reason when the
  // answer did not end by itself.
  std::string Summary() const;
  nlohmann::json ToJson() const;

 private:
  void AddText(const v1::TextDelta& delta, std::string& text, Clock::time_point now);
  void AddToolCall(const v1::ToolCallDelta& delta);

  const Clock::time_point asked_at_;
  std::optional<Clock::time_point> first_token_at_, last_token_at_;
  int64_t num_first_tokens_ = 0;  // that came together with the first
  v1::Started started_;
  std::string reasoning_, text_;
  std::vector<ToolCall> tool_calls_;
  std::vector<uint32_t> token_ids_;
  std::vector<v1::TokenLogprob> logprobs_;
  std::optional<v1::Finished> finished_;
};

// "stop", "length", "tool_calls", "cancelled", "deadline", "error".
std::string NameOf(v1::FinishReason reason);

}  // namespace weir::tools

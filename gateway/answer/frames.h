#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gateway/replica/messages.h"

// What a client's stream consists of, apart from any wire format (proto/weir/v1 for gRPC).

namespace weir::gateway {

struct StartedFrame {
  std::string request_id;
  std::string model;
  uint64_t seed = 0;
  uint32_t num_prompt_tokens = 0;
};

// Text, whole UTF-8, and the tokens it stands for.  May be empty when it carries tokens whose text is not complete yet,
// or that have none.
struct TextFrame {
  bool is_reasoning = false;
  std::string text;
  std::vector<OutputToken> tokens;  // in order, without gaps
  uint32_t first_token_index = 0;   // output tokens before this frame
};

struct ToolCallFrame {
  uint32_t index = 0;
  std::string id;    // with the first frame of a call
  std::string name;  // likewise
  std::string arguments;
};

enum class FinishReason { kStop, kLength, kToolCalls, kCancelled, kDeadline, kError };

struct Usage {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;
  uint32_t completion_tokens = 0;
  uint32_t reasoning_tokens = 0;
};

// total_us = gateway_us + wait.sum().
struct Timing {
  int64_t total_us = 0;
  int64_t gateway_us = 0;
  WaitSplit wait;
  std::optional<int64_t> time_to_first_token_us;
};

struct StreamError {
  std::string reason;  // UPPER_SNAKE
  std::string message;
  bool is_retriable = false;
};

struct FinishedFrame {
  FinishReason reason = FinishReason::kError;
  Usage usage;
  Timing timing;
  std::optional<StreamError> error;
};

using Frame = std::variant<StartedFrame, TextFrame, ToolCallFrame, FinishedFrame>;

// About how much memory it takes while it waits.
int64_t FrameBytes(const Frame& frame);

}  // namespace weir::gateway

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gateway/chat/answer_parser.h"
#include "gateway/chat/conversation.h"
#include "gateway/identity/identity.h"
#include "gateway/request/field_checks.h"
#include "gateway/request/request_error.h"
#include "gateway/request/served_model.h"

namespace weir::v1 {
class ChatRequest;
class GenerateRequest;
}  // namespace weir::v1

// From what a client sent to what a replica runs.  Pure: reads no clock, draws nothing at random; what is absent stays
// absent for the caller to fill in.

namespace weir::gateway {

struct SamplingSettings {
  float temperature = 1.0f;
  float top_p = 1.0f;
  uint32_t top_k = 0;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<TokenId, float>> logit_bias;  // ascending id
};

struct PreparedRequest {
  std::optional<std::string> request_id;
  std::optional<uint64_t> seed;
  Priority priority = Priority::kStandard;

  std::vector<TokenId> prompt;
  int32_t max_tokens = 0;
  bool has_max_tokens = false;  // the client's own; otherwise what the context leaves
  int32_t min_tokens = 0;
  std::vector<TokenId> stop_tokens;  // the model's end-of-sequence tokens included, unless they are to be ignored
  SamplingSettings sampling;
  bool wants_logprobs = false;
  uint32_t num_top_logprobs = 0;

  ChatDialect dialect = ChatDialect::kV3;
  AnswerParser::Options answer;
};

// Fills `prepared`, or says everything that is wrong with the request (nothing of `prepared` counts then):
//   INVALID_ARGUMENT     INVALID_PARAMETER, every bad field with its path
//   FAILED_PRECONDITION  CONTEXT_LENGTH_EXCEEDED, with both counts; NO_CHAT_TEMPLATE
std::optional<RequestError> PrepareChat(const v1::ChatRequest& request, const ServedModel& model,
                                        PreparedRequest& prepared);
std::optional<RequestError> PrepareGenerate(const v1::GenerateRequest& request, const ServedModel& model,
                                            PreparedRequest& prepared);

// The messages and tools of a request, as they are; what is wrong with them goes to `checks`.  Requires: the model has
// a chat template.
Conversation ReadConversation(const v1::ChatRequest& request, const ServedModel& model, FieldChecks& checks);
// FAILED_PRECONDITION NO_CHAT_TEMPLATE.
RequestError NoChatTemplate();

// Again, for a replica whose context is shorter than the model's own: FAILED_PRECONDITION as above, or lowers
// max_tokens where the client has not set it.
std::optional<RequestError> FitToContext(int64_t max_model_len, PreparedRequest& prepared);

}  // namespace weir::gateway

#include "scheduler/service/submission.h"

#include <cmath>
#include <limits>
#include <utility>

#include "scheduler/service/request_table.h"
#include "weir/scheduler/v1/scheduler.pb.h"

namespace weir::scheduler {
namespace {

constexpr size_t kMaxNameBytes = 256;
constexpr size_t kNamespaceKeyBytes = 16;
constexpr int kMaxStopTokens = 1024;
constexpr int kMaxLogitBiases = 1024;
constexpr uint32_t kMaxTopLogprobs = 20;
constexpr int kMaxTenantWeights = 8;
constexpr uint64_t kMaxDeadlineMs = uint64_t{365} * 24 * 3600 * 1000;

std::string Is(const std::string& field, const std::string& found, const std::string& allowed) {
  return field + ": is " + found + "; " + allowed;
}

// Token ids, appended to `ids`.
template <typename Field>
std::string ReadIds(const char* name, const Field& field, int32_t vocab_size, std::vector<TokenId>& ids) {
  ids.reserve(field.size());
  for (const uint32_t id : field) {
    if (id >= static_cast<uint32_t>(vocab_size)) {
      return Is(std::string(name) + "[" + std::to_string(ids.size()) + "]", std::to_string(id),
                "token ids are below " + std::to_string(vocab_size));
    }
    ids.push_back(static_cast<TokenId>(id));
  }
  return "";
}

std::string FindNumberError(const char* name, double value, double min, double max) {
  if (std::isfinite(value) && value >= min && value <= max) return "";
  return Is(name, std::to_string(value), "from " + std::to_string(min) + " to " + std::to_string(max) + " is allowed");
}

std::string FindSamplingError(const worker::v1::SamplingParams& sampling, int32_t vocab_size) {
  const double huge = std::numeric_limits<float>::max();
  for (std::string error : {FindNumberError("sampling.temperature", sampling.temperature(), 0, huge),
                            FindNumberError("sampling.top_p", sampling.top_p(), 0, 1),
                            FindNumberError("sampling.min_p", sampling.min_p(), 0, 1),
                            FindNumberError("sampling.repetition_penalty", sampling.repetition_penalty(), 0, huge),
                            FindNumberError("sampling.presence_penalty", sampling.presence_penalty(), -huge, huge),
                            FindNumberError("sampling.frequency_penalty", sampling.frequency_penalty(), -huge, huge)}) {
    if (!error.empty()) return error;
  }
  if (sampling.top_k() > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return Is("sampling.top_k", std::to_string(sampling.top_k()), "at most 2147483647 is allowed");
  }
  if (sampling.num_top_logprobs() > kMaxTopLogprobs) {
    return Is("sampling.num_top_logprobs", std::to_string(sampling.num_top_logprobs()),
              "at most " + std::to_string(kMaxTopLogprobs) + " is allowed");
  }
  if (sampling.logit_bias_size() > kMaxLogitBiases) {
    return Is("sampling.logit_bias", std::to_string(sampling.logit_bias_size()) + " entries",
              "at most " + std::to_string(kMaxLogitBiases) + " are allowed");
  }
  for (const worker::v1::LogitBias& entry : sampling.logit_bias()) {
    if (entry.token_id() >= static_cast<uint32_t>(vocab_size) || !std::isfinite(entry.bias())) {
      return Is("sampling.logit_bias", "of token " + std::to_string(entry.token_id()),
                "finite numbers for token ids below " + std::to_string(vocab_size) + " are allowed");
    }
  }
  return "";
}

std::string FindShapeError(const v1::Submit& message) {
  if (message.request_id().empty() || message.request_id().size() > kMaxNameBytes) {
    return Is("request_id", std::to_string(message.request_id().size()) + " bytes long",
              "1 to " + std::to_string(kMaxNameBytes) + " are allowed");
  }
  const size_t key_bytes = message.cache_namespace_key().size();
  if (key_bytes != 0 && key_bytes != kNamespaceKeyBytes) {
    return Is("cache_namespace_key", std::to_string(key_bytes) + " bytes long", "16 or none are allowed");
  }
  if (!message.constraint().empty()) return "constraint: is not supported";
  if (message.prompt_token_ids().empty()) return "prompt_token_ids: is empty; at least one token is needed";
  if (message.stop_token_ids_size() > kMaxStopTokens) {
    return Is("stop_token_ids", std::to_string(message.stop_token_ids_size()) + " entries",
              "at most " + std::to_string(kMaxStopTokens) + " are allowed");
  }
  if (message.tenant_weights_size() > kMaxTenantWeights) {
    return Is("tenant_weights", std::to_string(message.tenant_weights_size()) + " entries", "one a name is allowed");
  }
  for (const double weight : message.tenant_weights()) {
    if (std::string error = FindNumberError("tenant_weights", weight, 1e-6, 1e6); !error.empty()) return error;
  }
  return "";
}

std::string FindLengthError(const v1::Submit& message) {
  const auto max = static_cast<uint32_t>(std::numeric_limits<int32_t>::max());
  if (message.max_tokens() < 1 || message.max_tokens() > max) {
    return Is("max_tokens", std::to_string(message.max_tokens()), "1 to " + std::to_string(max) + " is allowed");
  }
  if (message.max_tokens() <= static_cast<uint32_t>(message.resumed_token_ids_size())) {
    return Is("max_tokens", std::to_string(message.max_tokens()),
              "more than the " + std::to_string(message.resumed_token_ids_size()) + " resumed tokens is needed");
  }
  if (message.min_tokens() > message.max_tokens()) {
    return Is("min_tokens", std::to_string(message.min_tokens()),
              "at most max_tokens, " + std::to_string(message.max_tokens()) + ", is allowed");
  }
  return "";
}

PriorityClass PriorityOf(v1::PriorityClass priority) {
  switch (priority) {
    case v1::PRIORITY_CLASS_INTERACTIVE:
      return PriorityClass::kInteractive;
    case v1::PRIORITY_CLASS_BATCH:
      return PriorityClass::kBatch;
    default:
      return PriorityClass::kStandard;
  }
}

// Neutral values where fields are absent, as the message says.
std::shared_ptr<const worker::v1::SamplingParams> WithDefaults(const worker::v1::SamplingParams& given) {
  auto sampling = std::make_shared<worker::v1::SamplingParams>(given);
  if (!given.has_temperature()) sampling->set_temperature(1);
  if (!given.has_top_p()) sampling->set_top_p(1);
  if (!given.has_repetition_penalty()) sampling->set_repetition_penalty(1);
  return sampling;
}

void ReadRest(const v1::Submit& message, TimeUs now, Submission& submission) {
  submission.number = message.stream_request_id();
  submission.name = message.request_id();
  submission.noise_name = message.has_noise_name() ? message.noise_name() : NoiseName(message.request_id());
  submission.tenant_path.assign(message.tenant_path().begin(), message.tenant_path().end());
  submission.tenant_weights.assign(message.tenant_weights().begin(), message.tenant_weights().end());
  submission.priority = PriorityOf(message.priority());
  if (message.has_deadline_ms()) {
    submission.deadline = now + static_cast<TimeUs>(std::min(message.deadline_ms(), kMaxDeadlineMs)) * 1000;
  }
  submission.max_tokens = static_cast<int32_t>(message.max_tokens());
  submission.min_tokens = static_cast<int32_t>(message.min_tokens());
  submission.seed = message.seed();
  submission.wants_logprobs = message.sampling().wants_logprob() || message.sampling().num_top_logprobs() > 0;
}

// What the blocks are computed with: another model or layout must find none of them.
std::string ModelHash(const ReplicaView& replica) {
  std::string hash;
  for (const uint64_t number :
       {replica.manifest_hash, static_cast<uint64_t>(replica.tp), static_cast<uint64_t>(replica.dp)}) {
    for (int i = 0; i < 8; ++i) hash.push_back(static_cast<char>(number >> (8 * i)));
  }
  return hash;
}

}  // namespace

std::string ReadSubmission(const v1::Submit& message, const ReplicaView& replica, const BlockKeySecret& secret,
                           TimeUs now, Submission& submission) {
  for (std::string error : {FindShapeError(message), FindLengthError(message)}) {
    if (!error.empty()) return error;
  }
  submission.sampling = WithDefaults(message.sampling());
  for (std::string error :
       {FindSamplingError(*submission.sampling, replica.vocab_size),
        ReadIds("prompt_token_ids", message.prompt_token_ids(), replica.vocab_size, submission.prompt),
        ReadIds("resumed_token_ids", message.resumed_token_ids(), replica.vocab_size, submission.resumed),
        ReadIds("stop_token_ids", message.stop_token_ids(), replica.vocab_size, submission.stop_tokens)}) {
    if (!error.empty()) return error;
  }
  ReadRest(message, now, submission);
  if (!message.cache_namespace_key().empty()) {
    submission.block_keys = PromptBlockKeys(secret, message.cache_namespace_key(), ModelHash(replica),
                                            submission.prompt, replica.block_size);
  }
  return "";
}

}  // namespace weir::scheduler

#include "gateway/serving/endings.h"

#include <utility>

namespace weir::gateway {
namespace {

using Code = RequestError::Code;

constexpr int64_t kRetryMs = 1000;

RequestError Error(Code code, std::string reason, std::string message) {
  RequestError error;
  error.code = code;
  error.reason = std::move(reason);
  error.message = std::move(message);
  return error;
}

RequestError Retriable(Code code, std::string reason, std::string message, int64_t retry_after_ms = kRetryMs) {
  RequestError error = Error(code, std::move(reason), std::move(message));
  error.retry_after_ms = retry_after_ms;
  return error;
}

std::string Counts(const Refusal& refusal) {
  return std::to_string(refusal.needed) + " are needed, " + std::to_string(refusal.limit) + " is the bound";
}

RequestError WithCounts(RequestError error, const Refusal& refusal) {
  error.metadata = {{"needed", std::to_string(refusal.needed)}, {"limit", std::to_string(refusal.limit)}};
  return error;
}

RequestError TenantQueueFull(const Refusal& refusal, const std::string& tenant, int64_t retry_after_ms) {
  RequestError error =
      Retriable(Code::kResourceExhausted, "TENANT_QUEUE_FULL",
                "too much of this tenant waits already (" + Counts(refusal) + "); try again later", retry_after_ms);
  error.quota.push_back({.subject = "tenant:" + tenant, .description = "waiting requests: " + Counts(refusal)});
  return WithCounts(std::move(error), refusal);
}

RequestError ErrorOf(const Refusal& refusal, const std::string& tenant, const std::string& what) {
  const int64_t retry_after_ms = refusal.retry_after_ms > 0 ? refusal.retry_after_ms : kRetryMs;
  switch (refusal.reason) {
    case Refusal::Reason::kInvalid:
      return Error(Code::kInvalidArgument, "INVALID_PARAMETER",
                   what.empty() ? "the replica cannot run this request" : what);
    case Refusal::Reason::kTooLong:
      return WithCounts(Error(Code::kFailedPrecondition, "CONTEXT_LENGTH_EXCEEDED",
                              "prompt and max_tokens together are longer than the replica's context: " +
                                  std::to_string(refusal.needed) + " tokens, " + std::to_string(refusal.limit) +
                                  " are possible; shorten the prompt or lower max_tokens"),
                        refusal);
    case Refusal::Reason::kNeverFits:
      return WithCounts(Error(Code::kFailedPrecondition, "NEVER_FITS",
                              "the request needs more cache blocks than the replica has: " + Counts(refusal) +
                                  "; shorten the prompt or lower max_tokens"),
                        refusal);
    case Refusal::Reason::kQueueFull:
      return Retriable(Code::kResourceExhausted, "OVERLOADED", "too many requests wait already; try again later",
                       retry_after_ms);
    case Refusal::Reason::kTenantQueueFull:
      return TenantQueueFull(refusal, tenant, retry_after_ms);
    case Refusal::Reason::kDeadline:
      return Error(Code::kDeadlineExceeded, "DEADLINE_INFEASIBLE",
                   "the request cannot be answered before its deadline; give it more time");
    case Refusal::Reason::kDraining:
      return Draining();
    case Refusal::Reason::kNoWorkers:
      return Retriable(Code::kUnavailable, "NO_WORKERS", "the model's workers are not ready yet; try again later",
                       retry_after_ms);
  }
  return NoReplica();
}

}  // namespace

RequestError ErrorOf(const Ending& ending, const std::string& tenant) {
  switch (ending.reason) {
    case EndReason::kRefused:
      return ErrorOf(ending.refusal.value_or(Refusal{}), tenant, ending.error);
    case EndReason::kDeadline:
      return DeadlinePassed();
    case EndReason::kCancelled:
      return ClientCancelled();
    case EndReason::kReplicaLost:
      return Retriable(Code::kUnavailable, "REPLICA_LOST", "the request's replica was lost: " + ending.error);
    case EndReason::kQuarantined:
      return Error(Code::kInternal, "QUARANTINED",
                   "workers failed too often while the request ran; it is not run again");
    case EndReason::kNotFinite:
      return Retriable(Code::kInternal, "NOT_FINITE", "the model's numbers broke; a new attempt may succeed");
    default:
      return Error(Code::kInternal, "REQUEST_FAILED",
                   ending.error.empty() ? "the request failed" : "the request failed: " + ending.error);
  }
}

StreamEnd StreamEndOf(const Ending& ending, bool has_tool_calls) {
  const auto error = [](const char* reason, std::string message, bool is_retriable) {
    return StreamEnd{.reason = FinishReason::kError, .error = StreamError{reason, std::move(message), is_retriable}};
  };
  switch (ending.reason) {
    case EndReason::kStop:
      return {.reason = has_tool_calls ? FinishReason::kToolCalls : FinishReason::kStop};
    case EndReason::kLength:
      return {.reason = FinishReason::kLength};
    case EndReason::kCancelled:
      return {.reason = FinishReason::kCancelled};
    case EndReason::kDeadline:
      return {.reason = FinishReason::kDeadline};
    case EndReason::kNotFinite:
      return error("NOT_FINITE", "the model's numbers broke; a new attempt may succeed", true);
    case EndReason::kQuarantined:
      return error("QUARANTINED", "workers failed too often while the request ran; it is not run again", false);
    case EndReason::kReplicaLost:
      return error("REPLICA_LOST", "the request's replica was lost: " + ending.error, true);
    case EndReason::kRefused:
      return error("REPLICA_LOST", "the request's replica was lost, and another did not take it over", true);
    case EndReason::kFailed:
      return error("REQUEST_FAILED",
                   ending.error.empty() ? "the request failed" : "the request failed: " + ending.error, false);
  }
  return error("REQUEST_FAILED", "the request failed", false);
}

RequestError Draining() {
  return Retriable(Code::kUnavailable, "DRAINING", "this server is about to stop; another one will answer", 200);
}

RequestError NoReplica() {
  return Retriable(Code::kUnavailable, "NO_REPLICA", "no replica of the model is ready; try again later");
}

RequestError Overloaded(const std::string& what_is_full) {
  return Retriable(Code::kResourceExhausted, "OVERLOADED", what_is_full + "; try again later");
}

RequestError TooManyRequests(const std::string& tenant, int32_t max_concurrent_requests) {
  const std::string bound = "at most " + std::to_string(max_concurrent_requests) + " requests at once with this key";
  RequestError error = Retriable(Code::kResourceExhausted, "TOO_MANY_CONCURRENT_REQUESTS", bound);
  error.quota.push_back({.subject = "tenant:" + tenant, .description = bound});
  return error;
}

RequestError RequestIdInUse() {
  return Error(Code::kAlreadyExists, "REQUEST_ID_IN_USE",
               "a request with this options.request_id is running; wait for its end, or give another id");
}

RequestError ClientCancelled() { return Error(Code::kCancelled, "CANCELLED", "the caller has cancelled the request"); }

RequestError DeadlinePassed() {
  return Error(Code::kDeadlineExceeded, "DEADLINE", "the deadline passed before the answer began");
}

RequestError UnknownModel(const std::string& known_models) {
  return Error(Code::kNotFound, "MODEL_NOT_FOUND", "no such model; this server has: " + known_models);
}

RequestError Unauthenticated(const std::string& message) {
  return Error(Code::kUnauthenticated, "INVALID_API_KEY", message);
}

const char* Name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kToolCalls:
      return "tool_calls";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

const char* Name(Code code) {
  switch (code) {
    case Code::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case Code::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case Code::kNotFound:
      return "NOT_FOUND";
    case Code::kAlreadyExists:
      return "ALREADY_EXISTS";
    case Code::kUnauthenticated:
      return "UNAUTHENTICATED";
    case Code::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case Code::kUnavailable:
      return "UNAVAILABLE";
    case Code::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case Code::kCancelled:
      return "CANCELLED";
    case Code::kInternal:
      return "INTERNAL";
  }
  return "INTERNAL";
}

}  // namespace weir::gateway

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "gateway/answer/frames.h"
#include "gateway/replica/messages.h"
#include "gateway/request/request_error.h"

// How the ends that replicas give look to clients: one table for requests that never began (a status), one for those
// that did (a last frame).

namespace weir::gateway {

// Of a request whose stream has not begun.
RequestError ErrorOf(const Ending& ending, const std::string& tenant);

struct StreamEnd {
  FinishReason reason = FinishReason::kError;
  std::optional<StreamError> error;  // with kError
};
// Of a stream that has begun.
StreamEnd StreamEndOf(const Ending& ending, bool has_tool_calls);

// The same for what the gateway itself decides.
RequestError Draining();
RequestError NoReplica();
RequestError Overloaded(const std::string& what_is_full);
RequestError TooManyRequests(const std::string& tenant, int32_t max_concurrent_requests);
RequestError RequestIdInUse();
RequestError ClientCancelled();
RequestError DeadlinePassed();
RequestError UnknownModel(const std::string& known_models);
RequestError Unauthenticated(const std::string& message);

// "stop", "length", ...: for metrics and logs.
const char* Name(FinishReason reason);
const char* Name(RequestError::Code code);

}  // namespace weir::gateway

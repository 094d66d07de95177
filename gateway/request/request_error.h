#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Why a request is not served, as a value: the same for every face of the gateway.

namespace weir::gateway {

struct RequestError {
  enum class Code {
    kInvalidArgument,
    kFailedPrecondition,
    kNotFound,
    kAlreadyExists,
    kUnauthenticated,
    kResourceExhausted,
    kUnavailable,
    kDeadlineExceeded,
    kCancelled,
    kInternal,
  };
  struct FieldViolation {
    std::string field;        // "messages[2].content"
    std::string description;  // what was wrong and what is allowed
  };
  struct QuotaViolation {
    std::string subject;  // "tenant:guangdong/foshan"
    std::string description;
  };

  Code code = Code::kInternal;
  std::string reason;   // UPPER_SNAKE, for programs: "INVALID_PARAMETER"
  std::string message;  // for people; holds nothing of what the request said
  std::vector<FieldViolation> violations;
  std::vector<QuotaViolation> quota;
  std::optional<int64_t> retry_after_ms;  // absent: retrying does not help
  std::vector<std::pair<std::string, std::string>> metadata;
};

}  // namespace weir::gateway

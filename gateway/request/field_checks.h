#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gateway/request/request_error.h"

// Collects what is wrong with a request's fields, so that a client learns all of it at once.

namespace weir::gateway {

class FieldChecks {
 public:
  static constexpr size_t kMaxViolations = 16;  // enough to mend a request by; the rest would only be more of the same

  void Add(std::string field, std::string description) {
    if (violations_.size() < kMaxViolations) violations_.push_back({std::move(field), std::move(description)});
  }
  // `value` must be in [low, high]; NaN is not.
  void InRange(const std::string& field, double value, double low, double high);
  // Open at the low end: (low, high].
  void AboveUpTo(const std::string& field, double value, double low, double high);
  void AtMost(const std::string& field, int64_t count, int64_t most, std::string_view of_what);
  void IsUtf8(const std::string& field, std::string_view text);
  // 1 to `most` letters, digits, '_' and '-'.
  void IsName(const std::string& field, std::string_view text, int64_t most);
  // A JSON object, not deeper than limits::kMaxSchemaDepth.
  void IsJsonObject(const std::string& field, std::string_view text);

  bool ok() const { return violations_.empty(); }
  // INVALID_ARGUMENT with all violations.  Requires: !ok().
  RequestError Error() const;

 private:
  std::vector<RequestError::FieldViolation> violations_;
};

}  // namespace weir::gateway

#include "gateway/request/field_checks.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "gateway/request/limits.h"
#include "gateway/text/utf8.h"

namespace weir::gateway {
namespace {

std::string Number(double value) {
  char text[32];
  snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace

void FieldChecks::InRange(const std::string& field, double value, double low, double high) {
  if (value >= low && value <= high) return;
  Add(field, "is " + Number(value) + "; must be from " + Number(low) + " to " + Number(high));
}

void FieldChecks::AboveUpTo(const std::string& field, double value, double low, double high) {
  if (value > low && value <= high) return;
  Add(field, "is " + Number(value) + "; must be above " + Number(low) + " and at most " + Number(high));
}

void FieldChecks::AtMost(const std::string& field, int64_t count, int64_t most, std::string_view of_what) {
  if (count <= most) return;
  Add(field, "has " + std::to_string(count) + " " + std::string(of_what) + "; at most " + std::to_string(most) +
                 " are allowed");
}

void FieldChecks::IsUtf8(const std::string& field, std::string_view text) {
  if (!IsValidUtf8(text)) Add(field, "is not valid UTF-8");
}

void FieldChecks::IsName(const std::string& field, std::string_view text, int64_t most) {
  const auto is_allowed = [](unsigned char c) { return isalnum(c) || c == '_' || c == '-'; };
  if (text.empty() || static_cast<int64_t>(text.size()) > most || !std::all_of(text.begin(), text.end(), is_allowed)) {
    Add(field, "must be 1 to " + std::to_string(most) + " of letters, digits, '_' and '-'");
  }
}

void FieldChecks::IsJsonObject(const std::string& field, std::string_view text) {
  bool is_too_deep = false;
  const auto watch_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    is_too_deep = is_too_deep || depth > limits::kMaxSchemaDepth;
    return !is_too_deep;  // what is deeper is not kept
  };
  const nlohmann::json json = nlohmann::json::parse(text, watch_depth, /*allow_exceptions=*/false);
  if (is_too_deep) {
    Add(field, "is nested deeper than " + std::to_string(limits::kMaxSchemaDepth) + " levels");
  } else if (!json.is_object()) {
    Add(field, "must be a JSON object");
  }
}

RequestError FieldChecks::Error() const {
  RequestError error;
  error.code = RequestError::Code::kInvalidArgument;
  error.reason = "INVALID_PARAMETER";
  error.message = violations_.front().field + " " + violations_.front().description;
  if (violations_.size() > 1)
    error.message += " (and " + std::to_string(violations_.size() - 1) + " more: see the details)";
  error.violations = violations_;
  return error;
}

}  // namespace weir::gateway

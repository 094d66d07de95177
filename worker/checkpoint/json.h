#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

// JSON from outside, read strictly.

namespace weir::worker {

inline constexpr int kMaxJsonDepth = 32;
inline constexpr int64_t kMaxJsonValues = 8'000'000;  // a bound on memory: under 1 GB whatever the text is

// INVALID_ARGUMENT, with `origin` in front and the place in the text, for malformed JSON or UTF-8, two equal keys in
// one object (whose meaning would depend on the reader), nesting deeper than kMaxJsonDepth, more than kMaxJsonValues
// values, or anything after the value.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view origin);

// Outside text for a message: in double quotes, with bytes that are not printable ASCII or valid UTF-8 escaped, and
// shortened when it is long.
std::string Quoted(std::string_view text);

}  // namespace weir::worker

#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "weir/v1/inference.pb.h"

// A conversation as JSON, in the shape of OpenAI's requests: a list of messages, or an object
//   {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...], "thinking": true}.

namespace weir::tools {

// INVALID_ARGUMENT names the place and what is expected there.
absl::StatusOr<v1::ChatPrompt> ParseChatJson(std::string_view text);

}  // namespace weir::tools

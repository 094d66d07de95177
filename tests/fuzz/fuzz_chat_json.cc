// Conversations as JSON: whatever the bytes are, an answer or an error.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tools/weir/client/chat_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t num_bytes) {
  const auto prompt = weir::tools::ParseChatJson({reinterpret_cast<const char*>(bytes), num_bytes});
  if (!prompt.ok() && prompt.status().message().empty()) __builtin_trap();
  return 0;
}

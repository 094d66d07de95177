#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/chat/chat_template.h"
#include "gateway/text/tokenizer.h"

// A model as clients know it.

namespace weir::gateway {

struct ServedModel {
  std::string name;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  int64_t max_model_len = 0;  // prompt and output, in tokens
  int32_t vocab_size = 0;     // of the model; ids at or above the tokenizer's own stand for nothing
  std::vector<TokenId> eos_tokens;
  std::optional<TokenId> bos_token;  // put in front of plain text; absent when the tokenizer does not want it
  // generation_config.json, where it says so.
  std::optional<float> default_temperature;
  std::optional<float> default_top_p;
  bool thinks_by_default = false;
};

}  // namespace weir::gateway

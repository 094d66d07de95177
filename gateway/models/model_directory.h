#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/request/served_model.h"

// What the gateway reads of a checkpoint directory: tokenizer.json, config.json, generation_config.json and
// tokenizer_config.json, as published on HuggingFace.  No weights.

namespace weir::gateway {

struct ModelDirectory {
  std::string name;  // what requests call it
  std::string path;  // holds the four files; only generation_config.json and tokenizer_config.json may be missing
  std::string chat_template = "auto";  // deepseek_v3, deepseek_r1, deepseek_v31; none: the model only generates; auto
  int64_t max_model_len = 0;           // 0 = the model's own
};

// NOT_FOUND or INVALID_ARGUMENT with the file, the field and what is expected.  `notes` gets what a person should know
// although it is no error.
absl::StatusOr<std::unique_ptr<ServedModel>> LoadServedModel(const ModelDirectory& directory,
                                                             std::vector<std::string>& notes);

// "NAME=DIR", or "DIR", whose last part is then the name.  INVALID_ARGUMENT: a name is 1 to 128 of letters, digits and
// "-_.:/".
absl::StatusOr<ModelDirectory> ParseModelFlag(std::string_view flag);

}  // namespace weir::gateway

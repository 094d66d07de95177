#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

// model.safetensors.index.json: which file holds which tensor.

namespace weir::worker {

inline constexpr int kMaxModelFiles = 4096;

struct IndexFile {
  std::vector<std::string> files;                               // sorted, each once
  std::vector<std::pair<std::string, int32_t>> file_of_tensor;  // by tensor name; index into files
};

// INVALID_ARGUMENT for bad JSON, no weight_map, entries that are not strings, file names that are no plain names ending
// in .safetensors, and more than kMaxModelFiles files.  Opens nothing.
absl::StatusOr<IndexFile> ParseIndexFile(std::string_view text, std::string_view origin);

}  // namespace weir::worker

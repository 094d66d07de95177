// The input is model.safetensors.index.json.  An accepted index names plain files and gives each tensor one of them.

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "kernels/check.h"
#include "worker/checkpoint/index_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace weir::worker;
  const auto index = ParseIndexFile(std::string_view(reinterpret_cast<const char*>(data), size), "input");
  if (!index.ok()) return 0;
  WEIR_CHECK(std::is_sorted(index->files.begin(), index->files.end()));
  for (const std::string& file : index->files) {
    WEIR_CHECK(file.find('/') == std::string::npos && file.find('\0') == std::string::npos && file != "..");
  }
  for (const auto& [tensor, file] : index->file_of_tensor) {
    WEIR_CHECK(file >= 0 && file < static_cast<int32_t>(index->files.size()));
  }
  return 0;
}

// The input is a whole safetensors file.  What the parser accepts must lie inside it, whole and disjoint.

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "kernels/check.h"
#include "worker/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace weir::worker;
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto file_bytes = static_cast<int64_t>(size);
  const absl::StatusOr<int64_t> header_bytes =
      ParseSafetensorsPrefix(file.substr(0, kSafetensorsPrefixBytes), file_bytes, "input");
  if (!header_bytes.ok()) return 0;
  const std::string_view header = file.substr(kSafetensorsPrefixBytes, *header_bytes);
  for (const bool needs_data : {true, false}) {
    const auto entries = ParseSafetensorsHeader(header, file_bytes, needs_data, "input");
    if (!entries.ok()) continue;
    int64_t end = kSafetensorsPrefixBytes + *header_bytes;
    for (const SafetensorsEntry& entry : *entries) {
      int64_t bytes = weir::kernels::SizeOf(entry.dtype);
      for (const int64_t length : entry.shape) bytes *= length;
      WEIR_CHECK(entry.begin == end && entry.end - entry.begin == bytes);
      end = entry.end;
    }
    WEIR_CHECK(end == file_bytes || (!needs_data && end > file_bytes));
  }
  return 0;
}

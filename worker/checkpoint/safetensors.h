#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

// The header of a safetensors file: eight bytes of little-endian length, then a JSON object of that length that gives
// each tensor's dtype, shape and place in the data that fills the rest of the file.  A pure function of bytes: it opens
// nothing and follows no offset.

namespace weir::worker {

struct SafetensorsEntry {
  std::string name;
  kernels::DType dtype = kernels::DType::kF32;  // kF32, kF16, kBF16 or kF8E4M3
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes from the start of the file, [begin, end)
  int64_t end = 0;
};

inline constexpr int64_t kSafetensorsPrefixBytes = 8;
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own bound

// The header's length from the file's first bytes (all eight, or what there is of them).  INVALID_ARGUMENT when the
// file is too short to hold it, or it is beyond the bound or the file's end.
absl::StatusOr<int64_t> ParseSafetensorsPrefix(std::string_view prefix, int64_t file_bytes, std::string_view origin);

// The entries, in the order of their data, from the header's JSON.  INVALID_ARGUMENT names the tensor, what is expected
// and what was found: dtypes other than the four, sizes that are not shape times dtype, and data that overlaps, leaves
// a gap, ends before the file does, or lies beyond its end.  needs_data = false allows the last (a file whose data has
// not come yet).  The order of the keys in the JSON has no meaning, as in the format's own reader.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view header, int64_t file_bytes,
                                                                     bool needs_data, std::string_view origin);

std::string ShapeString(const std::vector<int64_t>& shape);  // "[7168, 2048]"

}  // namespace weir::worker

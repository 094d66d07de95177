#include "worker/checkpoint/safetensors.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "worker/checkpoint/json.h"

namespace weir::worker {
namespace {

using kernels::DType;
using nlohmann::json;

constexpr size_t kMaxDimensions = 8;

absl::Status InvalidTensor(std::string_view origin, std::string_view tensor, const std::string& problem) {
  return absl::InvalidArgumentError(absl::StrFormat("%s: tensor %s: %s", origin, Quoted(tensor), problem));
}

std::optional<DType> DTypeNamed(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3}) {
    if (name == kernels::Name(dtype)) return dtype;
  }
  return std::nullopt;
}

// A list of non-negative numbers that fit 63 bits.
std::optional<std::vector<int64_t>> NumberList(const json& value, size_t max_size) {
  if (!value.is_array() || value.size() > max_size) return std::nullopt;
  std::vector<int64_t> numbers;
  for (const json& number : value) {
    if (!number.is_number_unsigned()) return std::nullopt;
    const auto unsigned_number = number.get<uint64_t>();
    if (unsigned_number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    numbers.push_back(static_cast<int64_t>(unsigned_number));
  }
  return numbers;
}

// shape times dtype; nullopt beyond 63 bits.
std::optional<int64_t> NumBytes(const std::vector<int64_t>& shape, DType dtype) {
  int64_t bytes = kernels::SizeOf(dtype);
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return bytes;
}

// One entry as its JSON says, with its place still relative to the data and unchecked against it.
absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& name, const json& value, std::string_view origin) {
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets")) {
    return InvalidTensor(origin, name, "expected an object with \"dtype\", \"shape\" and \"data_offsets\"");
  }
  const json& dtype_name = value["dtype"];
  const std::optional<DType> dtype = dtype_name.is_string() ? DTypeNamed(dtype_name.get<std::string>()) : std::nullopt;
  if (!dtype) {
    return InvalidTensor(origin, name,
                         absl::StrFormat("expected dtype F32, F16, BF16 or F8_E4M3, found %s",
                                         dtype_name.is_string() ? Quoted(dtype_name.get<std::string>()) : "no string"));
  }
  const auto shape = NumberList(value["shape"], kMaxDimensions);
  if (!shape) {
    return InvalidTensor(origin, name,
                         absl::StrFormat("expected a shape of at most %d non-negative integers", kMaxDimensions));
  }
  const auto offsets = NumberList(value["data_offsets"], 2);
  if (!offsets || offsets->size() != 2) {
    return InvalidTensor(origin, name, "expected data_offsets [begin, end], two non-negative integers");
  }
  return SafetensorsEntry{name, *dtype, *shape, (*offsets)[0], (*offsets)[1]};
}

absl::Status CheckSize(const SafetensorsEntry& entry, std::string_view origin) {
  if (entry.begin > entry.end) {
    return InvalidTensor(origin, entry.name,
                         absl::StrFormat("expected data_offsets in order, found [%d, %d]", entry.begin, entry.end));
  }
  const std::optional<int64_t> num_bytes = NumBytes(entry.shape, entry.dtype);
  if (!num_bytes || *num_bytes != entry.end - entry.begin) {
    return InvalidTensor(
        origin, entry.name,
        absl::StrFormat("expected %s bytes for shape %s of %s, found %d (data_offsets [%d, %d])",
                        num_bytes ? absl::StrFormat("%d", *num_bytes) : "more than 2^63", ShapeString(entry.shape),
                        kernels::Name(entry.dtype), entry.end - entry.begin, entry.begin, entry.end));
  }
  return absl::OkStatus();
}

// The entries, ascending, must fill [0, data_bytes) without gap or overlap.
absl::Status CheckPlaces(const std::vector<SafetensorsEntry>& entries, int64_t data_bytes, bool needs_data,
                         std::string_view origin) {
  int64_t filled = 0;
  const SafetensorsEntry* previous = nullptr;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin < filled) {
      return InvalidTensor(origin, entry.name,
                           absl::StrFormat("its data begins at byte %d and overlaps tensor %s, which ends at %d",
                                           entry.begin, Quoted(previous->name), filled));
    }
    if (entry.begin > filled) {
      return InvalidTensor(origin, entry.name,
                           absl::StrFormat("expected its data to begin at byte %d, where the tensor before it ends, "
                                           "found %d: a gap that the format does not allow",
                                           filled, entry.begin));
    }
    if (entry.end > data_bytes && needs_data) {
      return InvalidTensor(origin, entry.name,
                           absl::StrFormat("expected %d bytes of data, found %d: the file is truncated; fetch it again",
                                           entry.end, data_bytes));
    }
    filled = entry.end;
    previous = &entry;
  }
  if (filled < data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: expected %d bytes of data after the header, found %d: the last %d belong to no tensor",
                        origin, filled, data_bytes, data_bytes - filled));
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const json& value, std::string_view origin) {
  const bool is_text =
      value.is_object() && std::all_of(value.begin(), value.end(), [](const json& v) { return v.is_string(); });
  return is_text ? absl::OkStatus()
                 : absl::InvalidArgumentError(
                       absl::StrFormat("%s: expected \"__metadata__\" to be an object of strings", origin));
}

}  // namespace

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrFormat("[%s]", absl::StrJoin(shape, ", "));
}

absl::StatusOr<int64_t> ParseSafetensorsPrefix(std::string_view prefix, int64_t file_bytes, std::string_view origin) {
  if (file_bytes < kSafetensorsPrefixBytes || prefix.size() < kSafetensorsPrefixBytes) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: expected a safetensors file of at least %d bytes, found %d",
                                                      origin, kSafetensorsPrefixBytes, file_bytes));
  }
  uint64_t header_bytes = 0;
  for (int64_t i = kSafetensorsPrefixBytes - 1; i >= 0; --i) {
    header_bytes = header_bytes << 8 | static_cast<unsigned char>(prefix[i]);
  }
  if (header_bytes > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: expected a header of at most %d bytes, found a length of %u: not a safetensors file, or a "
                        "damaged one",
                        origin, kMaxSafetensorsHeaderBytes, header_bytes));
  }
  const auto length = static_cast<int64_t>(header_bytes);
  if (length > file_bytes - kSafetensorsPrefixBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: expected a header of %d bytes, but the file ends %d bytes after its length: the file is "
                        "truncated; fetch it again",
                        origin, length, file_bytes - kSafetensorsPrefixBytes));
  }
  return length;
}

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view header, int64_t file_bytes,
                                                                     bool needs_data, std::string_view origin) {
  if (header.empty() || header[0] != '{') {
    return absl::InvalidArgumentError(absl::StrFormat("%s: expected a header that begins with '{', found %s", origin,
                                                      header.empty() ? "none" : Quoted(header.substr(0, 1))));
  }
  absl::StatusOr<json> document = ParseJson(header, origin);
  if (!document.ok()) return document.status();

  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, value] : document->items()) {
    if (name == "__metadata__") {
      if (absl::Status status = CheckMetadata(value, origin); !status.ok()) return status;
      continue;
    }
    absl::StatusOr<SafetensorsEntry> entry = ParseEntry(name, value, origin);
    if (!entry.ok()) return entry.status();
    if (absl::Status status = CheckSize(*entry, origin); !status.ok()) return status;
    entries.push_back(*std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  const int64_t data_begin = kSafetensorsPrefixBytes + static_cast<int64_t>(header.size());
  if (absl::Status status = CheckPlaces(entries, file_bytes - data_begin, needs_data, origin); !status.ok()) {
    return status;
  }
  for (SafetensorsEntry& entry : entries) {
    if (__builtin_add_overflow(entry.begin, data_begin, &entry.begin) ||
        __builtin_add_overflow(entry.end, data_begin, &entry.end)) {
      return InvalidTensor(origin, entry.name, "its place in the file is beyond 2^63 bytes");
    }
  }
  return entries;
}

}  // namespace weir::worker

#include "worker/checkpoint/index_file.h"

#include <map>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "worker/checkpoint/json.h"

namespace weir::worker {
namespace {

using nlohmann::json;

bool IsSafetensorsName(std::string_view name) {
  return name.ends_with(".safetensors") && name.size() <= 255 && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

}  // namespace

absl::StatusOr<IndexFile> ParseIndexFile(std::string_view text, std::string_view origin) {
  absl::StatusOr<json> document = ParseJson(text, origin);
  if (!document.ok()) return document.status();
  if (!document->is_object() || !document->contains("weight_map") || !(*document)["weight_map"].is_object() ||
      (*document)["weight_map"].empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: weight_map: expected an object that gives each tensor its file", origin));
  }
  const json& weight_map = (*document)["weight_map"];
  std::map<std::string, int32_t> files;
  for (const auto& [tensor, file] : weight_map.items()) {
    if (!file.is_string() || !IsSafetensorsName(file.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: weight_map: tensor %s: expected the name of a .safetensors file in the same directory, "
                          "found %s",
                          origin, Quoted(tensor), file.is_string() ? Quoted(file.get<std::string>()) : "no string"));
    }
    files.emplace(file.get<std::string>(), 0);
  }
  if (files.size() > kMaxModelFiles) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: weight_map: expected at most %d files, found %d", origin, kMaxModelFiles, files.size()));
  }
  IndexFile index;
  for (auto& [name, number] : files) {
    number = static_cast<int32_t>(index.files.size());
    index.files.push_back(name);
  }
  for (const auto& [tensor, file] : weight_map.items()) {
    index.file_of_tensor.emplace_back(tensor, files[file.get<std::string>()]);
  }
  return index;
}

}  // namespace weir::worker

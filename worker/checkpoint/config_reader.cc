#include "worker/checkpoint/config_reader.h"

#include <limits>

#include "absl/strings/str_format.h"
#include "worker/checkpoint/json.h"

namespace weir::worker {
namespace {

using nlohmann::json;

std::string Shown(const json* value) {
  if (value == nullptr) return "nothing";
  if (value->is_string()) return Quoted(value->get_ref<const std::string&>());
  if (value->is_object()) return "an object";
  if (value->is_array()) return absl::StrFormat("a list of %d", value->size());
  return value->dump();
}

std::optional<int64_t> AsInteger(const json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  return std::nullopt;
}

}  // namespace

ConfigReader::ConfigReader(const json& object, std::string_view origin, std::string_view path)
    : origin_(origin), path_(path), object_(&object) {
  if (object.is_object()) return;
  static const json* const kEmpty = new json(json::object());
  object_ = kEmpty;
  const std::string_view name = path.empty() ? "the document" : path.substr(0, path.size() - 1);
  status_ = absl::InvalidArgumentError(
      absl::StrFormat("%s: %s: expected a JSON object, found %s", origin, name, Shown(&object)));
}

const json* ConfigReader::Find(const char* field) const {
  const auto found = object_->find(field);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

void ConfigReader::Refuse(std::string_view field, std::string_view expected, std::string_view found) {
  status_.Update(absl::InvalidArgumentError(
      absl::StrFormat("%s: %s%s: expected %s, found %s", origin_, path_, field, expected, found)));
}

void ConfigReader::Refuse(const char* field, std::string_view expected) { Refuse(field, expected, Shown(Find(field))); }

int64_t ConfigReader::Integer(const char* field, int64_t min, int64_t max, std::optional<int64_t> fallback) {
  const json* value = Find(field);
  if (value == nullptr && fallback) return *fallback;
  const std::optional<int64_t> number = value == nullptr ? std::nullopt : AsInteger(*value);
  if (number && *number >= min && *number <= max) return *number;
  Refuse(field, absl::StrFormat("an integer from %d to %d", min, max));
  return fallback.value_or(min);
}

double ConfigReader::Number(const char* field, double min, double max, std::optional<double> fallback) {
  const json* value = Find(field);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_number()) {
    const auto number = value->get<double>();
    if (number >= min && number <= max) return number;
  }
  Refuse(field, absl::StrFormat("a number from %g to %g", min, max));
  return fallback.value_or(min);
}

bool ConfigReader::Boolean(const char* field, bool fallback) {
  const json* value = Find(field);
  if (value == nullptr) return fallback;
  if (value->is_boolean()) return value->get<bool>();
  Refuse(field, "true or false");
  return fallback;
}

std::string ConfigReader::String(const char* field, std::optional<std::string> fallback) {
  const json* value = Find(field);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_string()) return value->get<std::string>();
  Refuse(field, "a string");
  return fallback.value_or("");
}

}  // namespace weir::worker

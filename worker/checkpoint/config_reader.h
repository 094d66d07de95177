#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

// Typed reading of one JSON object from outside.  The first thing wrong is kept and comes out of status(), so that a
// caller reads all fields in a row and asks once; reads after it return their defaults.

namespace weir::worker {

class ConfigReader {
 public:
  // `object` must live as long as the reader; null or not an object is wrong already.  `path` names the object in
  // messages: "" for the document, "rope_scaling." for a nested one.
  ConfigReader(const nlohmann::json& object, std::string_view origin, std::string_view path);

  // Each field must be there unless a default is given; null counts as absent.
  int64_t Integer(const char* field, int64_t min, int64_t max, std::optional<int64_t> fallback = std::nullopt);
  double Number(const char* field, double min, double max, std::optional<double> fallback = std::nullopt);
  bool Boolean(const char* field, bool fallback);
  std::string String(const char* field, std::optional<std::string> fallback = std::nullopt);

  // Null when the field is absent or null.
  const nlohmann::json* Find(const char* field) const;
  bool Has(const char* field) const { return Find(field) != nullptr; }

  // "{origin}: {path}{field}: expected {expected}, found {found}", unless something was wrong before.
  void Refuse(std::string_view field, std::string_view expected, std::string_view found);
  // The same, with the field's value as what was found.
  void Refuse(const char* field, std::string_view expected);

  const absl::Status& status() const { return status_; }
  void Take(const absl::Status& status) { status_.Update(status); }
  bool ok() const { return status_.ok(); }

 private:
  std::string origin_;
  std::string path_;
  const nlohmann::json* object_;
  absl::Status status_;
};

}  // namespace weir::worker

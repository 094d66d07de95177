#pragma once

#include <string>
#include <utility>

// The first rule that a run broke.

namespace weir::sim {

struct Violation {
  std::string checker;  // "blocks", "kv_content", ...: see docs/simulation.md
  std::string text;
  explicit operator bool() const { return !checker.empty(); }
};

class Report {
 public:
  // Keeps the first; what comes after it may only be its echo.
  void Broken(const char* checker, std::string text) {
    if (!violation_) violation_ = {checker, std::move(text)};
  }
  bool ok() const { return !violation_; }
  const Violation& violation() const { return violation_; }

 private:
  Violation violation_;
};

}  // namespace weir::sim

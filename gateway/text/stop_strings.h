#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// Texts that end an output and never appear in it.

namespace weir::gateway {

// Watches text that arrives in pieces.  A piece that could be the beginning of a stop text is held back until it is
// known not to be one, so that no part of a stop text is ever shown.
class StopStrings {
 public:
  // Empty entries are ignored.
  explicit StopStrings(std::vector<std::string> stops);

  // Appends to `visible` what can be shown after `text`.  True when a stop text is complete: what comes before the
  // first one has been shown, and nothing may be appended any more.
  bool Append(std::string_view text, std::string& visible);
  // No more text comes: what was held back can be shown.
  void Finish(std::string& visible);

  size_t held_bytes() const { return held_.size(); }
  // The stop text that was found.
  const std::optional<std::string>& found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // always a proper prefix of some stop text, or empty
  std::optional<std::string> found_;
};

}  // namespace weir::gateway

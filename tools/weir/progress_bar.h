#pragma once

#include <chrono>
#include <cstdint>
#include <string>

// How far a load is, for a person: one line on standard error, with bytes, bytes/s and the time left, rewritten in
// place.  On something that is not a terminal it prints a line every few seconds, and none at all for what ends sooner.

namespace weir::tools {

class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();  // ends the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void Update(int64_t bytes_done, int64_t bytes_total);

 private:
  std::string label_;
  bool is_terminal_;
  bool has_line_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace weir::tools

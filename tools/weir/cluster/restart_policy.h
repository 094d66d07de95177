#pragma once

#include <chrono>
#include <optional>

// When a process that died is started again.  Pure: times come with the calls.

namespace weir::tools {

// One for each process.  A death is quick when the process was not ready yet, or had been so for less than
// kSettled.  The delay doubles with every quick death in a row, from kFirstDelay; kMaxQuickDeaths of them in a row
// mean that starting again does not help.
class RestartPolicy {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kFirstDelay{100};
  static constexpr std::chrono::milliseconds kMaxDelay{5000};
  static constexpr std::chrono::seconds kSettled{5};
  static constexpr int kMaxQuickDeaths = 3;

  void Ready(Clock::time_point now) { ready_at_ = now; }
  // How long to wait before the next start; nothing: give up.
  std::optional<std::chrono::milliseconds> Died(Clock::time_point now);

 private:
  std::optional<Clock::time_point> ready_at_;  // of the present life
  int num_quick_deaths_ = 0;                   // in a row
};

}  // namespace weir::tools

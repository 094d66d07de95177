#pragma once

#include <chrono>
#include <optional>
#include <string>

// Whether a process that runs still moves, from probes of its /healthz.  Pure: the probes are made elsewhere.

namespace weir::tools {

// One for each life of a process.  Counts misses in a row rather than the time since the last answer, so that a
// supervisor that was itself asleep (a suspended laptop, Ctrl-Z) blames nobody.
class HealthWatch {
 public:
  static constexpr std::chrono::milliseconds kInterval{1000};  // between the starts of two probes
  static constexpr std::chrono::milliseconds kPatience{500};   // of one probe
  static constexpr int kMaxSilences = 5;                       // no answer at all: stopped, or short of processor time
  static constexpr int kMaxComplaints = 2;  // it answers that its loop stands still, and has waited before it says so

  void Answered() { num_silences_ = num_complaints_ = 0; }
  // These say why the process counts as hung, as the end of "the scheduler ..."; nothing while it does not.
  std::optional<std::string> Silent();
  std::optional<std::string> Complained(const std::string& text);

 private:
  int num_silences_ = 0, num_complaints_ = 0;  // in a row
};

}  // namespace weir::tools

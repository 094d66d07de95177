#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "worker/service/rank_messages.h"
#include "worker/step_plan.h"

// What ranks have to say, gathered for the one thread that drives them.

namespace weir::worker {

struct RankLoading {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};
struct RankGroupFormed {
  uint64_t epoch = 0;
};
// The stream is over; nothing follows.  OK when the rank drained.
struct RankLost {
  absl::Status status;
};

struct RankEvent {
  int rank = 0;         // as RankClient was told
  uint64_t stream = 0;  // RankClient::stream(): tells a stream's events from those of its predecessor
  std::variant<RankLoading, RankHello, RankGroupFormed, StepResult, RankFailed, RankLost> what;
};

class RankInbox {
 public:
  explicit RankInbox(size_t max_events = 4096) : max_events_(max_events) {}

  // False when max_events wait: the event is not taken.  RankLost is always taken.
  bool Push(RankEvent event);
  // Everything that waits; sleeps up to `patience` for the first.
  std::vector<RankEvent> TakeAll(std::chrono::milliseconds patience);

 private:
  const size_t max_events_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<RankEvent> events_;
};

}  // namespace weir::worker

#include "tests/worker/service/rank_inbox.h"

#include <utility>

namespace weir::worker {

bool RankInbox::Push(RankEvent event) {
  std::lock_guard lock(mutex_);
  if (events_.size() >= max_events_ && !std::holds_alternative<RankLost>(event.what)) return false;
  events_.push_back(std::move(event));
  arrived_.notify_one();
  return true;
}

std::vector<RankEvent> RankInbox::TakeAll(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, patience, [this] { return !events_.empty(); });
  return std::exchange(events_, {});
}

}  // namespace weir::worker

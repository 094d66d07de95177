#include "tools/weir/cluster/restart_policy.h"

#include <algorithm>
#include <utility>

namespace weir::tools {

std::optional<std::chrono::milliseconds> RestartPolicy::Died(Clock::time_point now) {
  const std::optional<Clock::time_point> ready_at = std::exchange(ready_at_, std::nullopt);
  const bool is_quick = !ready_at || now - *ready_at < kSettled;
  num_quick_deaths_ = is_quick ? num_quick_deaths_ + 1 : 0;
  if (num_quick_deaths_ >= kMaxQuickDeaths) return std::nullopt;
  const std::chrono::milliseconds delay = kFirstDelay * (1 << std::max(0, num_quick_deaths_ - 1));
  return std::min(delay, kMaxDelay);
}

}  // namespace weir::tools

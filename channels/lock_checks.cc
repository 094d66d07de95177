#include "channels/lock_checks.h"

#include "absl/synchronization/mutex.h"

namespace weir::channels {

void SkipLockChecks() {
#ifdef NDEBUG
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
}

}  // namespace weir::channels

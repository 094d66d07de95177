#pragma once

#include <cstdint>

#include "scheduler/core/events.h"
#include "scheduler/core/types.h"

// Where a request's time goes.  At any moment a request has one cause; switching the cause books the time since the
// last switch, so the parts add up to the whole by construction.

namespace weir::scheduler {

enum class WaitCause : uint8_t { kShare, kBlocks, kSlots, kPrefill, kDecode, kPreempted, kRecovering };
inline constexpr int kNumWaitCauses = 7;

// Time without workers, counted for all waiting requests at once: booking it request by request would cost in
// proportion to the waiting whenever a group is lost or formed.
class WorkerDowntime {
 public:
  void GroupStands(TimeUs now);
  void GroupGone(TimeUs now);
  TimeUs Total(TimeUs now) const { return total_ + (stands_ ? 0 : now - since_); }

 private:
  TimeUs total_ = 0;
  TimeUs since_ = 0;  // only differences of Total count, so any origin will do
  bool stands_ = false;
};

class WaitClock {
 public:
  void Start(TimeUs now, const WorkerDowntime& downtime);
  void SwitchTo(WaitCause cause, TimeUs now, const WorkerDowntime& downtime);
  WaitCause cause() const { return cause_; }

  // Books what is left and returns the parts.
  const WaitSplit& Stop(TimeUs now, const WorkerDowntime& downtime);

 private:
  void Book(TimeUs now, const WorkerDowntime& downtime);

  WaitCause cause_ = WaitCause::kShare;
  TimeUs since_ = 0;
  TimeUs downtime_before_ = 0;
  WaitSplit split_;
};

}  // namespace weir::scheduler

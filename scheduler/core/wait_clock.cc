#include "scheduler/core/wait_clock.h"

namespace weir::scheduler {
namespace {

TimeUs& PartOf(WaitSplit& split, WaitCause cause) {
  switch (cause) {
    case WaitCause::kShare:
      return split.queued_for_share_us;
    case WaitCause::kBlocks:
      return split.queued_for_blocks_us;
    case WaitCause::kSlots:
      return split.queued_for_slots_us;
    case WaitCause::kPrefill:
      return split.prefill_us;
    case WaitCause::kDecode:
      return split.decode_us;
    case WaitCause::kPreempted:
      return split.preempted_us;
    case WaitCause::kRecovering:
      break;
  }
  return split.recovering_us;
}

bool IsQueued(WaitCause cause) {
  return cause == WaitCause::kShare || cause == WaitCause::kBlocks || cause == WaitCause::kSlots;
}

}  // namespace

void WorkerDowntime::GroupStands(TimeUs now) {
  total_ = Total(now);
  stands_ = true;
}

void WorkerDowntime::GroupGone(TimeUs now) {
  total_ = Total(now);
  since_ = now;
  stands_ = false;
}

void WaitClock::Start(TimeUs now, const WorkerDowntime& downtime) {
  cause_ = WaitCause::kShare;
  since_ = now;
  downtime_before_ = downtime.Total(now);
  split_ = {};
}

void WaitClock::SwitchTo(WaitCause cause, TimeUs now, const WorkerDowntime& downtime) {
  if (cause == cause_) return;
  Book(now, downtime);
  cause_ = cause;
}

const WaitSplit& WaitClock::Stop(TimeUs now, const WorkerDowntime& downtime) {
  Book(now, downtime);
  return split_;
}

void WaitClock::Book(TimeUs now, const WorkerDowntime& downtime) {
  TimeUs elapsed = now - since_;
  if (IsQueued(cause_)) {
    const TimeUs without_workers = downtime.Total(now) - downtime_before_;
    split_.queued_for_workers_us += without_workers;
    elapsed -= without_workers;
  }
  PartOf(split_, cause_) += elapsed;
  since_ = now;
  downtime_before_ = downtime.Total(now);
}

}  // namespace weir::scheduler

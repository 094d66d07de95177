#include <algorithm>

#include "scheduler/core/check.h"
#include "scheduler/core/state.h"

// Leaving a slot, a queue, or life.

namespace weir::scheduler {

void Scheduler::State::On(const Cancel& cancel) {
  const auto found = by_id_.find(cancel.id);
  if (found == by_id_.end()) return;
  End(found->second, cancel.reason == Cancel::Reason::kStopString ? FinishReason::kStop : FinishReason::kCancelled);
}

// The one way out, from every state.
void Scheduler::State::End(SequenceIndex index, FinishReason reason) {
  Sequence& sequence = sequences_[index];
  const TenantId tenant = sequence.tenant;
  if (sequence.is_running()) {
    StopRunning(index);
  } else {
    queues_[tenant].RemoveWaiting(sequences_, index);
    CountWaiting(sequence, -1);
  }
  SyncFairShare(tenant);
  outputs_->emplace_back(Finished{.id = sequence.id,
                                  .reason = reason,
                                  .num_prompt_tokens = sequence.num_prompt_tokens,
                                  .num_cached_tokens = std::max(sequence.num_cached_tokens, 0),
                                  .num_output_tokens = sequence.num_output_tokens(),
                                  .num_computed_tokens = sequence.num_rows_run,
                                  .num_preemptions = sequence.num_preemptions,
                                  .num_worker_losses = sequence.num_worker_losses,
                                  .wait = sequence.wait.Stop(now_, downtime_)});
  ++stats_.requests_finished;
  if (reason == FinishReason::kQuarantined) ++stats_.requests_quarantined;
  deadlines_.Remove(index);
  by_id_.erase(sequence.id);
  buffers_.Release(sequence.tokens);
  sequences_.Free(index);
}

// Out of its slot and of its tenant's prompts; whether it waits again or ends is the caller's to say.
void Scheduler::State::StopRunning(SequenceIndex index) {
  Sequence& sequence = sequences_[index];
  DpGroup& group = groups_[sequence.dp_group];
  if (sequence.phase == Phase::kPrefilling) {
    queues_[sequence.tenant].RemovePrefilling(sequences_, index);
    --group.num_prefilling;
    if (sequence.last_pass != pass_.number) --group.num_prefilling_left;
  }
  --group.num_running;
  group.num_promised_blocks -= sequence.num_promised_blocks;
  if (sequence.is_pinned) group.num_pinned_blocks -= NumBlocksAtMost(sequence);
  SlotOf(sequence).last_step = sequence.last_planned_step;
  VacateSlot(sequence.dp_group, sequence.slot);

  sequence.computed_before = std::max(sequence.computed_before, sequence.num_computed);
  sequence.planned_before = std::max(sequence.planned_before, sequence.num_planned);
  sequence.num_computed = sequence.num_planned = sequence.num_samples_in_flight = 0;
  sequence.num_blocks_sent = sequence.num_blocks_published = sequence.num_promised_blocks = 0;
  sequence.last_sampling_step = sequence.last_planned_step = 0;
  sequence.dp_group = sequence.slot = -1;
  sequence.is_pinned = sequence.is_plain_decode = false;
  ++sequence.stay;
}

// A step in flight may still write to the slot's blocks: then they are given back when the last such step has
// completed.
void Scheduler::State::VacateSlot(int32_t dp_group, SlotId slot_id) {
  DpGroup& group = groups_[dp_group];
  Slot& slot = group.slots[slot_id];
  slot.sequence = kNoSequence;
  slot.is_draining = true;
  group.num_draining_blocks += slot.block_table.size();
  if (slot.last_step <= last_completed_step_) ReleaseSlot(dp_group, slot_id);
}

// From the last block to the first: of a cached prefix the end is evicted before the beginning, without which it could
// not be found.
void Scheduler::State::ReleaseSlot(int32_t dp_group, SlotId slot_id) {
  DpGroup& group = groups_[dp_group];
  Slot& slot = group.slots[slot_id];
  WEIR_CHECK(slot.is_draining, "a slot is released once");
  slot.is_draining = false;
  group.num_draining_blocks -= slot.block_table.size();
  for (int32_t i = slot.block_table.size() - 1; i >= 0; --i) group.pool.Release(slot.block_table[i]);
  BufferPool::Clear(slot.block_table);
  group.free_slots.push_back(slot_id);
  released_.push_back({.dp_group = dp_group, .slot = slot_id});
}

void Scheduler::State::ReturnToQueue(SequenceIndex index, WaitCause cause) {
  Sequence& sequence = sequences_[index];
  sequence.phase = Phase::kWaiting;
  sequence.is_returned = true;
  sequence.wait.SwitchTo(cause, now_, downtime_);
  queues_[sequence.tenant].AddWaiting(sequences_, index);
  CountWaiting(sequence, 1);
  SyncFairShare(sequence.tenant);
}

// A sequence joins (1) or leaves (-1) those that wait for what it waits for.
void Scheduler::State::CountWaiting(const Sequence& sequence, int32_t difference) {
  stats_.num_waiting += difference;
  stats_.num_waiting_tokens += difference * static_cast<int64_t>(sequence.num_prompt_tokens);
  num_waiting_for_[static_cast<int>(sequence.wait.cause())] += difference;
}

void Scheduler::State::SwitchWaiting(Sequence& sequence, WaitCause cause) {
  --num_waiting_for_[static_cast<int>(sequence.wait.cause())];
  sequence.wait.SwitchTo(cause, now_, downtime_);
  ++num_waiting_for_[static_cast<int>(cause)];
}

void Scheduler::State::SyncFairShare(TenantId tenant) {
  const bool has_work = queues_[tenant].has_work();
  if (has_work == fair_share_.is_queued(tenant)) return;
  if (has_work) {
    fair_share_.Enter(tenant);
  } else {
    fair_share_.Leave(tenant);
  }
}

void Scheduler::State::ResumeWaitClock(Sequence& sequence) {
  if (sequence.is_plain_decode) return;
  const WaitCause cause = RunningCause(sequence);
  sequence.wait.SwitchTo(cause, now_, downtime_);
  sequence.is_plain_decode = cause == WaitCause::kDecode;
}

// After a preemption or a loss the time counts as such until everything computed before is computed again.
WaitCause Scheduler::State::RunningCause(const Sequence& sequence) const {
  if (sequence.is_returned && sequence.num_computed < sequence.computed_before) return sequence.wait.cause();
  return sequence.has_own_output() ? WaitCause::kDecode : WaitCause::kPrefill;
}

}  // namespace weir::scheduler

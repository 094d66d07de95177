#include <algorithm>

#include "scheduler/core/check.h"
#include "scheduler/core/state.h"

// The worker group comes and goes; requests outlive it.

namespace weir::scheduler {

void Scheduler::State::On(const WorkerLost& lost) {
  if (group_stands_ && lost.epoch == epoch_) LoseGroup();
}

// A group that forms while another stands replaces it, and what ran there is lost.
void Scheduler::State::On(const GroupFormed& formed) {
  if (formed.epoch <= epoch_) return;
  WEIR_CHECK(formed.num_dp_groups >= 1 && formed.blocks_per_dp_group >= 0,
             "a group has data-parallel groups and blocks");
  if (group_stands_) LoseGroup();
  group_stands_ = true;
  epoch_ = formed.epoch;
  next_step_ = 1;
  last_completed_step_ = 0;
  groups_.reserve(formed.num_dp_groups);
  for (int32_t g = 0; g < formed.num_dp_groups; ++g)
    groups_.emplace_back(formed.blocks_per_dp_group, limits_.max_num_seqs);
  ReserveMemory();
  downtime_.GroupStands(now_);
  EndWhatNoLongerFits();
}

// What steps would otherwise take from the heap one by one: the slots' block tables, as long as they can get within
// reason, and the lists that have an entry for a slot.
void Scheduler::State::ReserveMemory() {
  constexpr int32_t kMaxReserved = 4096;  // blocks; longer tables grow when they come
  const int32_t num_blocks =
      std::min({NumBlocksFor(limits_.max_model_len), groups_.front().pool.num_total(), kMaxReserved});
  for (DpGroup& group : groups_) {
    for (Slot& slot : group.slots) buffers_.Reserve(slot.block_table, num_blocks);
  }
  released_.reserve(NumSlots());
  steps_.Reserve(NumSlots());
}

void Scheduler::State::LoseGroup() {
  CountLosses();
  const std::vector<SequenceIndex> running = Running();
  last_completed_step_ = next_step_ - 1;  // nothing is in flight any more: slots are vacated at once
  steps_.Clear();
  // The latest arrival first: each goes to the very front of its queue.
  for (auto index = running.rbegin(); index != running.rend(); ++index) {
    StopRunning(*index);
    ReturnToQueue(*index, WaitCause::kRecovering);
  }
  for (DpGroup& group : groups_) {
    num_evictions_before_ += group.pool.num_evictions();
    for (Slot& slot : group.slots) buffers_.Release(slot.block_table);
  }
  groups_.clear();
  released_.clear();
  claim_ = {};
  first_kept_by_pinned_ = {};
  group_stands_ = false;
  downtime_.GroupGone(now_);
  EndTheLostTooOften();
}

// Whoever had rows in a step in flight may be what killed the worker.
void Scheduler::State::CountLosses() {
  ++pass_.number;  // so that nobody is counted twice
  for (int32_t i = 0; i < steps_.size(); ++i) {
    for (const WorkInFlight& work : steps_.at(i).work) {
      Sequence& sequence = sequences_[work.sequence.index];
      if (!sequences_.IsAlive(work.sequence) || sequence.last_pass == pass_.number) continue;
      sequence.last_pass = pass_.number;
      if (++sequence.num_worker_losses >= policy_.max_worker_losses) lost_too_often_.push_back(work.sequence);
    }
  }
}

void Scheduler::State::EndTheLostTooOften() {
  for (const SequenceRef& ref : lost_too_often_) End(ref.index, FinishReason::kQuarantined);
  lost_too_often_.clear();
}

std::vector<SequenceIndex> Scheduler::State::Running() const {
  std::vector<SequenceIndex> running;
  for (const DpGroup& group : groups_) {
    for (const Slot& slot : group.slots) {
      if (slot.sequence != kNoSequence) running.push_back(slot.sequence);
    }
  }
  std::sort(running.begin(), running.end(), [this](SequenceIndex a, SequenceIndex b) {
    return sequences_[a].arrival_number < sequences_[b].arrival_number;
  });
  return running;
}

// Another group may be smaller.  What was admitted to the queue and can never run in this one ends as failed: it would
// wait for ever, and the client can take it to another replica.
void Scheduler::State::EndWhatNoLongerFits() {
  const int32_t num_blocks = groups_.front().pool.num_total();
  std::vector<SequenceIndex> too_large;
  for (SequenceIndex index = 0; index < sequences_.size(); ++index) {
    const Sequence& sequence = sequences_[index];
    if (sequence.phase != Phase::kFree && NumBlocksAtMost(sequence) > num_blocks) too_large.push_back(index);
  }
  std::sort(too_large.begin(), too_large.end(), [this](SequenceIndex a, SequenceIndex b) {
    return sequences_[a].arrival_number < sequences_[b].arrival_number;
  });
  for (const SequenceIndex index : too_large) End(index, FinishReason::kFailed);
}

}  // namespace weir::scheduler

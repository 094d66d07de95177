#include "scheduler/core/state.h"

// A running sequence needs a block and there is none.

namespace weir::scheduler {

// Brings a block into reach of `for_whom`.  False: not in this step, because a slot that drains is about to give some
// back, because nobody may be preempted, or because it was `for_whom` itself that had to go.
bool Scheduler::State::MakeRoom(DpGroup& group, SequenceIndex for_whom) {
  const Sequence& sequence = sequences_[for_whom];
  while (NumWithinReach(group, sequence) <= 0) {
    if (group.num_draining_blocks > group.num_counting_on_draining + NumHeldAgainst(group, sequence)) {
      ++group.num_counting_on_draining;
      return false;
    }
    const SequenceIndex victim = FindVictim(group, -1);
    if (victim == kNoSequence) return false;
    Preempt(victim);
    if (victim == for_whom) return false;
  }
  return true;
}

// The latest arrival of the most over-served tenant.  Never a pinned one, never the only one that runs, and nobody who
// has rows in the step being planned.
SequenceIndex Scheduler::State::FindVictim(const DpGroup& group, double min_counter) const {
  if (group.num_running < 2) return kNoSequence;
  SequenceIndex victim = kNoSequence;
  for (const Slot& slot : group.slots) {
    if (slot.sequence == kNoSequence || slot.block_table.empty()) continue;
    const Sequence& sequence = sequences_[slot.sequence];
    if (fair_share_.counter(sequence.tenant) <= min_counter) continue;
    if (sequence.is_pinned || sequence.last_planned_step == next_step_) continue;
    if (victim == kNoSequence || ComesBefore(sequences_[victim], sequence)) victim = slot.sequence;
  }
  return victim;
}

// By recompute: its blocks go, its tokens stay, and it waits at the front of its queue.
void Scheduler::State::Preempt(SequenceIndex index) {
  Sequence& sequence = sequences_[index];
  sequence.must_be_pinned |= ++sequence.num_preemptions >= policy_.max_preemptions;
  ++stats_.preemptions;
  ++pass_.num_preempted;
  StopRunning(index);
  ReturnToQueue(index, WaitCause::kPreempted);
}

}  // namespace weir::scheduler

#include <algorithm>

#include "scheduler/core/state.h"

// A running sequence needs a block and there is none.

namespace weir::scheduler {

// Brings a block into reach of `for_whom`.  False: not in this step, because a slot that drains or a sequence that ends
// is about to give some back, because nobody may be preempted, or because it was `for_whom` itself that had to go.
bool Scheduler::State::MakeRoom(DpGroup& group, SequenceIndex for_whom) {
  const Sequence& sequence = sequences_[for_whom];
  while (NumWithinReach(group, sequence) <= 0) {
    if (group.num_draining_blocks > group.num_counting_on_draining + NumHeldAgainst(group, sequence)) {
      ++group.num_counting_on_draining;
      return false;
    }
    if (HasEnding(group)) return false;
    const SequenceIndex victim = FindVictim(group, -1);
    if (victim == kNoSequence) return false;
    Preempt(victim);
    if (victim == for_whom) return false;
  }
  return true;
}

// All that it may compute is computed or in flight, and its last token is being sampled: its blocks come back with that
// step, sooner than a preemption could free them.
bool Scheduler::State::IsEnding(const Sequence& sequence) const {
  return sequence.num_samples_in_flight > 0 &&
         sequence.num_output_tokens() + sequence.num_samples_in_flight >= sequence.max_tokens;
}

bool Scheduler::State::HasEnding(const DpGroup& group) const {
  return std::any_of(group.slots.begin(), group.slots.end(), [this](const Slot& slot) {
    return slot.sequence != kNoSequence && IsEnding(sequences_[slot.sequence]);
  });
}

// The latest arrival of the most over-served tenant.  Never a pinned one, never the only one that runs, and nobody who
// has rows in the step being planned or is about to end.
SequenceIndex Scheduler::State::FindVictim(const DpGroup& group, double min_counter) const {
  if (group.num_running < 2) return kNoSequence;
  SequenceIndex victim = kNoSequence;
  for (const Slot& slot : group.slots) {
    if (slot.sequence == kNoSequence || slot.block_table.empty()) continue;
    const Sequence& sequence = sequences_[slot.sequence];
    if (fair_share_.counter(sequence.tenant) <= min_counter) continue;
    if (sequence.is_pinned || sequence.last_planned_step == next_step_ || IsEnding(sequence)) continue;
    if (victim == kNoSequence || ComesBefore(sequences_[victim], sequence)) victim = slot.sequence;
  }
  return victim;
}

// By recompute: its blocks go, its tokens stay, and it waits at the front of its queue.
void Scheduler::State::Preempt(SequenceIndex index) {
  Sequence& sequence = sequences_[index];
  sequence.must_be_pinned |= ++sequence.num_preemptions >= policy_.max_preemptions;
  ++stats_.preemptions;
  ++pass_.num_stopped;
  StopRunning(index);
  ReturnToQueue(index, WaitCause::kPreempted);
  sequence.last_pass = pass_.number;  // not back in the plan that it had to leave
}

}  // namespace weir::scheduler

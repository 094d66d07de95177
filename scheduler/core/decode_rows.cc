#include <algorithm>

#include "scheduler/core/state.h"

// The decode floor: before any prompt row, each decoding sequence gets its one row.  max_num_batched_tokens is at least
// max_num_seqs, so there is always a row for everyone; what may be missing is a block.

namespace weir::scheduler {

void Scheduler::State::PlanDecodeRows() {
  for (DpGroup& group : groups_) GrowDecodingTables(group);
  for (DpGroup& group : groups_) PlanDecodeRows(group);
  ChargeAll();
  SetBudgets();
}

// All tables grow before the first row is planned: a preemption takes no row back.
void Scheduler::State::GrowDecodingTables(DpGroup& group) {
  std::erase_if(group.decoding, [this](const SequenceRef& ref) { return !sequences_.IsCurrent(ref); });
  for (const SequenceRef& ref : group.decoding) {
    if (!sequences_.IsCurrent(ref)) continue;  // preempted for one before it
    Sequence& sequence = sequences_[ref.index];
    if (!IsDue(sequence) || TakeBlocks(group, sequence, 1) == 1) continue;
    if (MakeRoom(group, ref.index)) {
      TakeBlocks(group, sequence, 1);
    } else {
      group.is_pressed = true;
    }
  }
}

void Scheduler::State::PlanDecodeRows(DpGroup& group) {
  for (const SequenceRef& ref : group.decoding) {
    if (!sequences_.IsCurrent(ref)) continue;
    Sequence& sequence = sequences_[ref.index];
    // A preemption for somebody further down the list may have freed a block for this one too.
    if (!IsDue(sequence) || TakeBlocks(group, sequence, 1) == 0) continue;
    ChargeLater(sequence, CostOf(sequence, sequence.num_planned, 1));
    AddWork(group, sequence, 1);
  }
}

// Its next token is known, or is sampled by the step just before this one; and it may still have more tokens.
bool Scheduler::State::IsDue(const Sequence& sequence) const {
  if (sequence.num_output_tokens() + sequence.num_samples_in_flight >= sequence.max_tokens) return false;
  return sequence.num_samples_in_flight == 0 || sequence.last_sampling_step + 1 == next_step_;
}

// The rows left for prompts.  All groups run a step together, so decoding in one of them bounds the prompts of all.
void Scheduler::State::SetBudgets() {
  for (const DpGroup& group : groups_) pass_.has_decode_rows |= !group.work.empty();
  for (DpGroup& group : groups_) {
    group.budget = limits_.max_num_batched_tokens - static_cast<int32_t>(group.work.size());
    if (pass_.has_decode_rows) group.budget = std::min(group.budget, policy_.max_prompt_tokens_while_decoding);
  }
}

}  // namespace weir::scheduler

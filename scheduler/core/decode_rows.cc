#include <algorithm>

#include "scheduler/core/state.h"

// The decode floor: before any prompt row, each decoding sequence gets its one row.  max_num_batched_tokens is at least
// max_num_seqs, so there is always a row for everyone; what may be missing is a block.

namespace weir::scheduler {
namespace {

// Sequences lie all over memory: one that comes up this many turns later is fetched.  4096 sequences, AMD EPYC:
// see tools/bench/scheduler.cc.
constexpr size_t kAhead = 8;

}  // namespace

void Scheduler::State::PlanDecodeRows() {
  for (DpGroup& group : groups_) {
    if (IsShortOfBlocks(group)) GrowDecodingTables(group);
    PlanDecodeRows(group);
  }
  ChargeAll();
  SetBudgets();
}

// Not every decoding sequence is sure to get one block more.
bool Scheduler::State::IsShortOfBlocks(const DpGroup& group) const {
  return group.pool.num_available() - group.num_held_blocks < static_cast<int64_t>(group.decoding.size());
}

// All tables grow before the first row is planned: a preemption takes no row back.
void Scheduler::State::GrowDecodingTables(DpGroup& group) {
  for (const SequenceRef& ref : group.decoding) {
    if (!sequences_.IsCurrent(ref)) continue;  // it left, or was preempted for one before it
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
  size_t num_kept = 0;
  for (size_t i = 0; i < group.decoding.size(); ++i) {
    if (i + kAhead < group.decoding.size()) sequences_.Prefetch(group.decoding[i + kAhead].index);
    const SequenceRef ref = group.decoding[i];
    if (!sequences_.IsCurrent(ref)) continue;
    group.decoding[num_kept++] = ref;
    Sequence& sequence = sequences_[ref.index];
    if (!IsDue(sequence) || TakeBlocks(group, sequence, 1) < 1) continue;
    ChargeLater(sequence, CostOf(sequence, sequence.num_planned, 1));
    AddWork(group, ref.index, 1);
  }
  group.decoding.resize(num_kept);
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

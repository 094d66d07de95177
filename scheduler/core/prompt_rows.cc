#include <algorithm>

#include "scheduler/core/state.h"

// What the decoding rows leave of a step goes to prompts, chunk by chunk, always to the tenant whose turn it is: to the
// prompt it is in the middle of, or to the next of its waiting requests.

namespace weir::scheduler {
namespace {

// Of one class of one tenant in one pass: when the first does not fit, how many behind it are looked at.
constexpr int kMaxTriesPerClass = 8;

}  // namespace

void Scheduler::State::PlanPromptRows() {
  TryClaimFirst();
  while (HasBudget() && (pass_.admits || HasPrefilling())) {
    const TenantId tenant = fair_share_.Least();
    if (tenant < 0) break;
    const SequenceIndex candidate = NextCandidate(queues_[tenant]);
    if (candidate == kNoSequence) {
      fair_share_.SetAside(tenant);
    } else {
      Serve(candidate);
    }
  }
  fair_share_.RestoreAll();
  MarkFirstInLine();
  ForgetOldMarks();
}

bool Scheduler::State::HasBudget() const {
  return std::any_of(groups_.begin(), groups_.end(), [](const DpGroup& group) { return group.budget > 0; });
}

bool Scheduler::State::HasPrefilling() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const DpGroup& group) { return group.budget > 0 && group.num_prefilling_left > 0; });
}

SequenceIndex Scheduler::State::NextCandidate(const TenantQueue& queue) const {
  for (const PriorityClass priority : ClassOrder(queue)) {
    const ClassQueue& of_class = queue.of(priority);
    if (const SequenceIndex index = FirstPrefilling(of_class); index != kNoSequence) return index;
    if (const SequenceIndex index = FirstWaiting(of_class); index != kNoSequence) return index;
  }
  return kNoSequence;
}

std::array<PriorityClass, kNumPriorityClasses> Scheduler::State::ClassOrder(const TenantQueue& queue) const {
  return queue.ClassOrder(sequences_, policy_.cost_per_prompt_token, limits_.max_num_batched_tokens);
}

SequenceIndex Scheduler::State::FirstPrefilling(const ClassQueue& queue) const {
  SequenceIndex index = queue.prefilling.first();
  while (index != kNoSequence) {
    const Sequence& sequence = sequences_[index];
    if (sequence.last_pass != pass_.number && groups_[sequence.dp_group].budget > 0) break;
    index = sequence.next;
  }
  return index;
}

SequenceIndex Scheduler::State::FirstWaiting(const ClassQueue& queue) const {
  if (!pass_.admits) return kNoSequence;
  SequenceIndex index = queue.must_be_pinned.first();
  if (index != kNoSequence && sequences_[index].last_pass != pass_.number) return index;
  index = queue.waiting.first();
  for (int i = 0; i < kMaxTriesPerClass && index != kNoSequence; ++i) {
    if (sequences_[index].last_pass != pass_.number) return index;
    index = sequences_[index].next;
  }
  return kNoSequence;
}

void Scheduler::State::Serve(SequenceIndex index) {
  Sequence& sequence = sequences_[index];
  sequence.last_pass = pass_.number;
  if (sequence.phase == Phase::kPrefilling) {
    --groups_[sequence.dp_group].num_prefilling_left;
    if (IsInTime(sequence, sequence.num_planned)) {
      PlanChunk(index);
    } else {
      ++pass_.num_stopped;
      End(index, FinishReason::kDeadline);
    }
  } else {
    TryAdmit(index);
  }
}

// As many rows as the budget and the blocks allow.  With no block at all it waits for the steps of others to end, and
// preempts only when its group would stand still.
void Scheduler::State::PlanChunk(SequenceIndex index) {
  Sequence& sequence = sequences_[index];
  DpGroup& group = groups_[sequence.dp_group];
  const int32_t wanted = std::min(sequence.num_tokens() - sequence.num_planned, group.budget);
  int32_t num_rows = TakeBlocks(group, sequence, wanted);
  if (num_rows == 0 && group.work.empty() && MakeRoom(group, index)) num_rows = TakeBlocks(group, sequence, wanted);
  if (num_rows == 0) {
    group.is_pressed = true;
    return;
  }
  Charge(sequence.tenant, sequence.priority, CostOf(sequence, sequence.num_planned, num_rows));
  AddWork(group, index, num_rows);
  group.budget -= num_rows;
  if (sequence.num_planned == sequence.num_tokens()) StartDecoding(index);
}

void Scheduler::State::StartDecoding(SequenceIndex index) {
  Sequence& sequence = sequences_[index];
  DpGroup& group = groups_[sequence.dp_group];
  queues_[sequence.tenant].RemovePrefilling(sequences_, index);
  --group.num_prefilling;
  sequence.phase = Phase::kDecoding;
  group.decoding.push_back(sequences_.Ref(index));
  SyncFairShare(sequence.tenant);
}

}  // namespace weir::scheduler

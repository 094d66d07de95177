#include "scheduler/core/tenant_queue.h"

#include <algorithm>

namespace weir::scheduler {

void TenantQueue::AddWaiting(SequencePool& pool, SequenceIndex index) {
  const Sequence& sequence = pool[index];
  ClassQueue& queue = Of(sequence.priority);
  SequenceList& list = WaitingListOf(sequence);
  SequenceIndex next = kNoSequence;
  if (sequence.is_returned) {  // few of the waiting are: the walk is short
    next = list.first();
    while (next != kNoSequence && pool[next].is_returned && pool[next].arrival_number < sequence.arrival_number) {
      next = pool[next].next;
    }
  }
  list.InsertBefore(pool, index, next);
  queue.num_waiting_rows += sequence.num_tokens();
  ++num_waiting_;
}

void TenantQueue::RemoveWaiting(SequencePool& pool, SequenceIndex index) {
  TakeFromWaiting(pool, index);
  ForgetDebtToIdle(pool[index].priority);
}

void TenantQueue::Admit(SequencePool& pool, SequenceIndex index) {
  TakeFromWaiting(pool, index);
  Of(pool[index].priority).prefilling.PushBack(pool, index);
}

SequenceList& TenantQueue::WaitingListOf(const Sequence& sequence) {
  ClassQueue& queue = Of(sequence.priority);
  return sequence.must_be_pinned ? queue.must_be_pinned : queue.waiting;
}

void TenantQueue::TakeFromWaiting(SequencePool& pool, SequenceIndex index) {
  const Sequence& sequence = pool[index];
  WaitingListOf(sequence).Remove(pool, index);
  Of(sequence.priority).num_waiting_rows -= sequence.num_tokens();
  --num_waiting_;
}

void TenantQueue::RemovePrefilling(SequencePool& pool, SequenceIndex index) {
  Of(pool[index].priority).prefilling.Remove(pool, index);
  ForgetDebtToIdle(pool[index].priority);
}

// What it was served too much is remembered, or one request at a time would always come first.
void TenantQueue::ForgetDebtToIdle(PriorityClass priority) {
  ClassQueue& queue = Of(priority);
  if (!queue.has_work()) queue.owed = std::min(queue.owed, 0.0);
}

int64_t TenantQueue::NumRowsAhead(PriorityClass priority) const {
  int64_t num_rows = 0;
  for (int i = 0; i <= static_cast<int>(priority); ++i) num_rows += classes_[i].num_waiting_rows;
  return num_rows;
}

std::array<PriorityClass, kNumPriorityClasses> TenantQueue::ClassOrder(const SequencePool& pool, double cost_per_row,
                                                                       int32_t max_rows) const {
  std::array<PriorityClass, kNumPriorityClasses> order = {PriorityClass::kInteractive, PriorityClass::kStandard,
                                                          PriorityClass::kBatch};
  int first = 0;
  double most_owed = 0;
  for (int i = 1; i < kNumPriorityClasses; ++i) {
    const ClassQueue& queue = classes_[i];
    if (queue.owed <= most_owed || !queue.has_work()) continue;
    if (queue.owed < cost_per_row * NextRows(pool, queue, max_rows)) continue;
    most_owed = queue.owed;
    first = i;
  }
  std::rotate(order.begin(), order.begin() + first, order.begin() + first + 1);
  return order;
}

int32_t TenantQueue::NextRows(const SequencePool& pool, const ClassQueue& queue, int32_t max_rows) {
  SequenceIndex next = queue.prefilling.first();
  if (next == kNoSequence) next = queue.must_be_pinned.first();
  if (next == kNoSequence) next = queue.waiting.first();
  return std::min(pool[next].num_tokens() - pool[next].num_planned, max_rows);
}

void TenantQueue::Charge(PriorityClass priority, double cost, const std::array<double, kNumPriorityClasses>& min_share,
                         double bound) {
  for (int i = 1; i < kNumPriorityClasses; ++i) {
    ClassQueue& queue = classes_[i];
    if (queue.has_work()) queue.owed += min_share[i] * cost;
    if (i == static_cast<int>(priority)) queue.owed -= cost;
    queue.owed = std::clamp(queue.owed, -bound, bound);
  }
}

}  // namespace weir::scheduler

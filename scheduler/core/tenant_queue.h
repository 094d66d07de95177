#pragma once

#include <array>
#include <cstdint>

#include "scheduler/core/sequence.h"
#include "scheduler/core/types.h"

// What one tenant wants computed, by class.  Which class goes first inside the tenant is decided here.

namespace weir::scheduler {

struct ClassQueue {
  SequenceList prefilling;       // have a slot and prompt rows to compute, in order of admission
  SequenceList must_be_pinned;   // waiting, and may not be preempted again
  SequenceList waiting;          // all others; returned ones first, in both lists, and each in order of arrival
  int64_t num_waiting_rows = 0;  // known tokens of the waiting ones
  double owed = 0;               // service this class is behind its minimum; negative: ahead of it

  bool has_work() const { return !prefilling.empty() || !must_be_pinned.empty() || !waiting.empty(); }
};

class TenantQueue {
 public:
  void AddWaiting(SequencePool& pool, SequenceIndex index);
  void RemoveWaiting(SequencePool& pool, SequenceIndex index);
  // From waiting to prefilling.
  void Admit(SequencePool& pool, SequenceIndex index);
  void RemovePrefilling(SequencePool& pool, SequenceIndex index);

  const ClassQueue& of(PriorityClass priority) const { return classes_[static_cast<int>(priority)]; }
  bool has_work() const { return classes_[0].has_work() || classes_[1].has_work() || classes_[2].has_work(); }
  int32_t num_waiting() const { return num_waiting_; }
  // Known tokens of the waiting requests that go before a newcomer of this class.
  int64_t NumRowsAhead(PriorityClass priority) const;

  // Highest class first; but before all others a lower class that is owed its next chunk of prompt rows: as many as its
  // first request wants and a step can take (`max_rows`), at `cost_per_row`.  Of several, the one that is owed most.
  std::array<PriorityClass, kNumPriorityClasses> ClassOrder(const SequencePool& pool, double cost_per_row,
                                                            int32_t max_rows) const;

  // The tenant has been charged `cost` for work of this class.  While a lower class has work, its minimum share of the
  // cost is owed to it.  `bound` keeps a class that could not be served, or was served alone, from saving up or from
  // paying back for ever.
  void Charge(PriorityClass priority, double cost, const std::array<double, kNumPriorityClasses>& min_share,
              double bound);

 private:
  ClassQueue& Of(PriorityClass priority) { return classes_[static_cast<int>(priority)]; }
  SequenceList& WaitingListOf(const Sequence& sequence);
  void TakeFromWaiting(SequencePool& pool, SequenceIndex index);
  static int32_t NextRows(const SequencePool& pool, const ClassQueue& queue, int32_t max_rows);
  void ForgetDebtToIdle(PriorityClass priority);

  std::array<ClassQueue, kNumPriorityClasses> classes_;
  int32_t num_waiting_ = 0;
};

}  // namespace weir::scheduler

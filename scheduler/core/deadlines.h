#pragma once

#include <vector>

#include "scheduler/core/indexed_heap.h"
#include "scheduler/core/sequence.h"
#include "scheduler/core/types.h"

// Which live request's deadline comes first.  Requests without one are never in here.

namespace weir::scheduler {

class Deadlines {
 public:
  Deadlines() = default;
  Deadlines(const Deadlines&) = delete;
  Deadlines& operator=(const Deadlines&) = delete;

  // kNever, or kNever until it is removed: nothing happens.
  void Add(SequenceIndex sequence, TimeUs deadline);
  void Remove(SequenceIndex sequence);

  TimeUs earliest() const { return heap_.empty() ? kNever : deadlines_[heap_.top()]; }
  // Requires: earliest() != kNever.
  SequenceIndex first() const { return heap_.top(); }

 private:
  struct ByDeadline {
    const std::vector<TimeUs>* deadlines;
    bool operator()(SequenceIndex a, SequenceIndex b) const {
      const TimeUs deadline_a = (*deadlines)[a], deadline_b = (*deadlines)[b];
      return deadline_a != deadline_b ? deadline_a < deadline_b : a < b;
    }
  };

  std::vector<TimeUs> deadlines_;  // by SequenceIndex
  IndexedHeap<ByDeadline> heap_{ByDeadline{&deadlines_}};
};

}  // namespace weir::scheduler

#include "scheduler/core/deadlines.h"

namespace weir::scheduler {

void Deadlines::Add(SequenceIndex sequence, TimeUs deadline) {
  if (deadline == kNever) return;
  if (sequence >= static_cast<SequenceIndex>(deadlines_.size())) {
    deadlines_.resize(2 * static_cast<size_t>(sequence) + 16, kNever);
    heap_.Resize(static_cast<int32_t>(deadlines_.size()));
  }
  deadlines_[sequence] = deadline;
  heap_.Push(sequence);
}

void Deadlines::Remove(SequenceIndex sequence) {
  if (sequence < static_cast<SequenceIndex>(deadlines_.size()) && heap_.Contains(sequence)) heap_.Remove(sequence);
}

}  // namespace weir::scheduler

#include "scheduler/core/sequence.h"

#include <utility>

#include "scheduler/core/check.h"

namespace weir::scheduler {

SequenceIndex SequencePool::Add() {
  if (first_free_ == kNoSequence) {
    if (size_ % kChunk == 0) chunks_.push_back(std::make_unique<Sequence[]>(kChunk));
    return size_++;
  }
  const SequenceIndex index = first_free_;
  first_free_ = std::exchange((*this)[index].next, kNoSequence);
  return index;
}

void SequencePool::Free(SequenceIndex index) {
  Sequence& sequence = (*this)[index];
  WEIR_CHECK(sequence.tokens.empty(), "its tokens go back to their pool first");
  const uint32_t request = sequence.request + 1;
  sequence = Sequence();
  sequence.request = request;
  sequence.next = std::exchange(first_free_, index);
}

void SequenceList::InsertBefore(SequencePool& pool, SequenceIndex index, SequenceIndex next) {
  const SequenceIndex previous = next == kNoSequence ? last_ : pool[next].previous;
  pool[index].previous = previous;
  pool[index].next = next;
  (previous == kNoSequence ? first_ : pool[previous].next) = index;
  (next == kNoSequence ? last_ : pool[next].previous) = index;
}

void SequenceList::Remove(SequencePool& pool, SequenceIndex index) {
  Sequence& sequence = pool[index];
  (sequence.previous == kNoSequence ? first_ : pool[sequence.previous].next) = sequence.next;
  (sequence.next == kNoSequence ? last_ : pool[sequence.next].previous) = sequence.previous;
  sequence.previous = sequence.next = kNoSequence;
}

}  // namespace weir::scheduler

#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/core/events.h"
#include "scheduler/core/sequence.h"
#include "scheduler/core/types.h"

// Steps that are planned and not completed, oldest first, with what each of them computes for whom.

namespace weir::scheduler {

struct WorkInFlight {
  SequenceRef sequence;
  int32_t dp_group = 0;
  SlotId slot = 0;
  int32_t num_rows = 0;
  int32_t num_prompt_rows = 0;
  int32_t num_recomputed_rows = 0;  // planned before, in an earlier stay
  bool samples = false;
};

struct StepInFlight {
  StepId step = 0;
  bool is_completed = false;  // its result is here, and waits for those of earlier steps
  std::vector<WorkInFlight> work;
  std::vector<SampledToken> sampled;
};

class StepsInFlight {
 public:
  explicit StepsInFlight(int32_t max_steps) : ring_(max_steps) {}

  bool empty() const { return size_ == 0; }
  bool full() const { return size_ == static_cast<int32_t>(ring_.size()); }
  int32_t size() const { return size_; }
  StepInFlight& at(int32_t i) { return ring_[(first_ + i) % ring_.size()]; }  // 0: the oldest
  const StepInFlight& at(int32_t i) const { return ring_[(first_ + i) % ring_.size()]; }

  // Room for `num_works` works in each step, so that steps take no memory from the heap.
  void Reserve(size_t num_works);

  StepInFlight& PushBack(StepId step);  // requires: !full()
  void PopFront();
  void Clear() { size_ = 0; }

  // nullptr: never planned, or completed already.
  StepInFlight* Find(StepId step);

 private:
  std::vector<StepInFlight> ring_;
  size_t first_ = 0;
  int32_t size_ = 0;
};

}  // namespace weir::scheduler

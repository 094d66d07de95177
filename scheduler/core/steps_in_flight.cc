#include "scheduler/core/steps_in_flight.h"

#include "scheduler/core/check.h"

namespace weir::scheduler {

void StepsInFlight::Reserve(size_t num_works) {
  for (StepInFlight& step : ring_) {
    step.work.reserve(num_works);
    step.sampled.reserve(num_works);
  }
}

StepInFlight& StepsInFlight::PushBack(StepId step) {
  WEIR_CHECK(!full(), "as many steps in flight as allowed");
  StepInFlight& added = at(size_++);
  added.step = step;
  added.is_completed = false;
  added.work.clear();
  added.sampled.clear();
  return added;
}

void StepsInFlight::PopFront() {
  first_ = (first_ + 1) % ring_.size();
  --size_;
}

StepInFlight* StepsInFlight::Find(StepId step) {
  for (int32_t i = 0; i < size_; ++i) {
    if (at(i).step == step) return at(i).is_completed ? nullptr : &at(i);
  }
  return nullptr;
}

}  // namespace weir::scheduler

#pragma once

#include <array>
#include <cstdint>

#include "scheduler/core/policy.h"
#include "scheduler/core/types.h"

// What a step costs here, learnt from how long steps take: the core refuses by it what cannot be in time.  It begins
// with what the policy assumes.
//
// A least-squares fit of the cost model's four parts over the last several hundred steps (older ones fade), in relative
// errors.  A step that takes much longer than expected counts for little, so a stall is not taken for the pace.  A part
// moves by at most a factor of two at a time and stays within bounds; a part that no step says anything about stays
// where it is, or sinks back to what was assumed if it is above: else a replica that was slow once could refuse all
// that would show it to be fast again.

namespace weir::scheduler {

// What a step computes in its busiest data-parallel group.
struct StepSize {
  int64_t num_prompt_rows = 0;
  int64_t num_generated_rows = 0;
  double num_context = 0;  // cached tokens that its rows attend to, summed over rows
};

class StepCostEstimate {
 public:
  explicit StepCostEstimate(const StepCost& assumed);

  // A step has taken its slowest rank so long.  `now` does not go back.  True: cost() is another.
  bool Record(TimeUs now, const StepSize& size, TimeUs took_us);

  const StepCost& cost() const { return cost_; }

 private:
  static constexpr int kNumParts = 4;  // fixed, prompt token, generated token, context token
  using Parts = std::array<double, kNumParts>;

  void Fade(TimeUs since_us);
  void Fit();
  bool Publish();

  const Parts assumed_;
  Parts parts_;
  StepCost cost_;  // parts_, when they were last worth telling

  std::array<Parts, kNumParts> normal_ = {};  // sum over steps of z z', z: sizes / time
  Parts moment_ = {};                         // sum of z
  TimeUs last_at_ = 0;
  TimeUs fitted_at_ = 0;
  int32_t num_since_fit_ = 0;
};

}  // namespace weir::scheduler

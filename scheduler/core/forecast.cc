#include "scheduler/core/forecast.h"

#include <algorithm>

namespace weir::scheduler {

TimeUs PromptTimeUs(const StepCost& cost, int64_t rows, int64_t first_position, int64_t rows_per_step) {
  if (rows <= 0) return 0;
  const int64_t num_steps = (rows + rows_per_step - 1) / rows_per_step;
  const auto steps = static_cast<double>(num_steps), num_rows = static_cast<double>(rows);
  const double context = num_rows * static_cast<double>(first_position) + num_rows * (num_rows - 1) / 2;
  const double time = steps * cost.fixed_us + num_rows * cost.us_per_prompt_token + context * cost.us_per_context_token;
  return static_cast<TimeUs>(std::min(time, 1e18));
}

TimeUs FirstTokenTimeUs(const StepCost& cost, int64_t rows, int64_t first_position, int64_t rows_ahead,
                        int64_t rows_per_step, int32_t num_dp_groups) {
  const int64_t rows_before = rows_ahead / std::max(num_dp_groups, 1);
  const int64_t steps_before = rows_before / rows_per_step;
  const double time_before =
      static_cast<double>(rows_before) * cost.us_per_prompt_token + static_cast<double>(steps_before) * cost.fixed_us;
  return static_cast<TimeUs>(std::min(time_before, 1e18)) + PromptTimeUs(cost, rows, first_position, rows_per_step);
}

}  // namespace weir::scheduler

#pragma once

#include <cstdint>

#include "scheduler/core/policy.h"
#include "scheduler/core/types.h"

// How long work will take at the least, by the step-cost model.  Used to refuse what cannot be in time; never for
// correctness.

namespace weir::scheduler {

// `rows` prompt rows from `first_position` on, computed in full steps of `rows_per_step` with nothing else in them.
TimeUs PromptTimeUs(const StepCost& cost, int64_t rows, int64_t first_position, int64_t rows_per_step);

// The time to the first token of `rows` rows behind `rows_ahead` others that may be spread over all groups.
TimeUs FirstTokenTimeUs(const StepCost& cost, int64_t rows, int64_t first_position, int64_t rows_ahead,
                        int64_t rows_per_step, int32_t num_dp_groups);

}  // namespace weir::scheduler

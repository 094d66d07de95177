#pragma once

#include <memory>

#include "scheduler/core/scheduler.h"
#include "scheduler/service/request_table.h"

namespace weir::scheduler {

// The message for all ranks: the core's plan with token ids and, where a slot is new, how its tokens are chosen.  Ids a
// slot has from its setup are not sent again.
std::shared_ptr<const worker::v1::RunRequest> BuildPlan(const StepPlan& plan, const Scheduler& core,
                                                        RequestTable& requests);

}  // namespace weir::scheduler

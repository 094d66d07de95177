#pragma once

#include <optional>
#include <vector>

#include "gateway/replica/messages.h"

namespace weir::scheduler::v1 {
class Replica;
class StepOutput;
class Submit;
}  // namespace weir::scheduler::v1

// The messages of proto/weir/scheduler/v1 as plain values, and back.

namespace weir::gateway {

void FillSubmit(uint64_t attempt, const Submission& submission, const std::vector<TokenId>& resumed,
                std::optional<int64_t> deadline_ms, scheduler::v1::Submit& out);
ReplicaView ReadReplica(const scheduler::v1::Replica& replica);
ReplicaOutput ReadOutput(const scheduler::v1::StepOutput& output);

}  // namespace weir::gateway

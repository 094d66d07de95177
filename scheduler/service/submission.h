#pragma once

#include <string>

#include "scheduler/core/block_key.h"
#include "scheduler/service/messages.h"
#include "scheduler/service/replica_board.h"

namespace weir::scheduler::v1 {
class Submit;
}  // namespace weir::scheduler::v1

namespace weir::scheduler {

// Checks a request's fields and names the blocks of its prompt: in proportion to the prompt, so never on the event
// loop's thread.  `replica` must be known.  Empty: `submission` is ready; otherwise what is wrong, with the field's
// name, what it is and what is allowed.
std::string ReadSubmission(const v1::Submit& message, const ReplicaView& replica, const BlockKeySecret& secret,
                           TimeUs now, Submission& submission);

}  // namespace weir::scheduler

#pragma once

#include <string>

#include "scheduler/service/messages.h"

namespace weir::worker::v1 {
class RunResponse;
}  // namespace weir::worker::v1

namespace weir::scheduler {

// Reads what a rank says into `what`.  Bytes from outside: an empty return means it was understood, anything else says
// what is wrong with it.  Whether it fits the plans is for others to see.
std::string ReadRankMessage(const worker::v1::RunResponse& message, decltype(RankEvent::what)& what);

}  // namespace weir::scheduler

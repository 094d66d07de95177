#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "scheduler/service/rank_messages.h"
#include "weir/worker/v1/worker.pb.h"

// What a rank says, as bytes: it is understood, or the complaint says what is wrong.  The same bytes read the same.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  weir::worker::v1::RunResponse message;
  if (size > (1 << 20) || !message.ParseFromArray(data, static_cast<int>(size))) return 0;
  decltype(weir::scheduler::RankEvent::what) first, second;
  const std::string error = weir::scheduler::ReadRankMessage(message, first);
  if (weir::scheduler::ReadRankMessage(message, second) != error) std::abort();
  if (error.empty() && first.index() != second.index()) std::abort();
  return 0;
}

#include "channels/live_calls.h"

#include <grpcpp/server.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace weir::channels {
namespace {

// For peers to take note that the server goes: enough for a round trip.
constexpr std::chrono::milliseconds kGoodbye{150};

}  // namespace

struct LiveCalls::Count {
  std::mutex mutex;
  std::condition_variable has_fallen;
  int64_t num_live = 0;
};

LiveCalls::LiveCalls() : count_(std::make_shared<Count>()) {}

LiveCalls::Call::Call(const LiveCalls& calls) : count_(calls.count_) {
  const std::lock_guard lock(count_->mutex);
  ++count_->num_live;
}

LiveCalls::Call::~Call() {
  const std::lock_guard lock(count_->mutex);
  --count_->num_live;
  count_->has_fallen.notify_all();
}

void LiveCalls::WaitForNone(std::chrono::milliseconds patience) const {
  std::unique_lock lock(count_->mutex);
  count_->has_fallen.wait_for(lock, patience, [this] { return count_->num_live == 0; });
}

void Close(grpc::Server& server, const LiveCalls& calls, std::chrono::milliseconds patience) {
  calls.WaitForNone(patience);
  server.Shutdown(std::chrono::system_clock::now() + std::min(patience, kGoodbye));
  server.Wait();
}

}  // namespace weir::channels

#include "channels/live_calls.h"

#include <grpcpp/server.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace weir::channels {
namespace {

// For peers to take note that the server goes: enough for a round trip.
constexpr std::chrono::milliseconds kGoodbye{150};
// For peers to read the end of a call.  A server that shuts down closes a connection behind its last call; a peer that
// is just writing (a window update, say) then fails to, gives the connection up, and loses what it has not read.
constexpr std::chrono::milliseconds kLastReads{100};

}  // namespace

struct LiveCalls::Count {
  std::mutex mutex;
  std::condition_variable has_fallen;
  int64_t num_live = 0;
  std::chrono::steady_clock::time_point last_end;  // of a call
};

LiveCalls::LiveCalls() : count_(std::make_shared<Count>()) {}

LiveCalls::Call::Call(const LiveCalls& calls) : count_(calls.count_) {
  const std::lock_guard lock(count_->mutex);
  ++count_->num_live;
}

LiveCalls::Call::~Call() {
  const std::lock_guard lock(count_->mutex);
  --count_->num_live;
  count_->last_end = std::chrono::steady_clock::now();
  count_->has_fallen.notify_all();
}

void LiveCalls::WaitForNone(std::chrono::milliseconds patience) const {
  std::unique_lock lock(count_->mutex);
  count_->has_fallen.wait_for(lock, patience, [this] { return count_->num_live == 0; });
}

std::chrono::steady_clock::time_point LiveCalls::last_end() const {
  const std::lock_guard lock(count_->mutex);
  return count_->last_end;
}

void Close(grpc::Server& server, const LiveCalls& calls, std::chrono::milliseconds patience) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  calls.WaitForNone(patience);
  std::this_thread::sleep_until(std::min(deadline, calls.last_end() + kLastReads));
  server.Shutdown(std::chrono::system_clock::now() + std::min(patience, kGoodbye));
  server.Wait();
}

}  // namespace weir::channels

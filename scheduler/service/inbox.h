#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "scheduler/service/messages.h"

// Everything that happens outside the event loop, in the order it happened.

namespace weir::scheduler {

class Inbox {
 public:
  struct Bounds {
    size_t max_submissions = 4096;  // waiting to be looked at, of all gateways
    size_t max_messages = 65536;    // of all kinds
  };
  explicit Inbox(Bounds bounds) : bounds_(bounds) {}

  // False at a bound: the message is not taken, and the sender refuses it or ends its stream.  What says that something
  // is over (a stream, the process) is always taken: there is one of each for everything that was let in.
  bool Push(Message message);

  // All messages; sleeps for the first one, until `until` at the latest.
  std::vector<Message> TakeAll(std::chrono::steady_clock::time_point until);

  size_t size() const;

 private:
  bool HasRoomFor(const Message& message) const;

  const Bounds bounds_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Message> messages_;
  size_t num_submissions_ = 0;
};

}  // namespace weir::scheduler

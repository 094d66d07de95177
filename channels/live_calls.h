#pragma once

#include <chrono>
#include <memory>

// How a server ends: its own calls get time to end, peers that merely hold a connection do not.

namespace grpc {
class Server;
}

namespace weir::channels {

// Counts calls that are going on.  Thread-safe.
class LiveCalls {
 private:
  struct Count;

 public:
  // A call's part: counts from its construction to its destruction, and may outlive the counter.
  class Call {
   public:
    explicit Call(const LiveCalls& calls);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    const std::shared_ptr<Count> count_;
  };

  LiveCalls();
  // Returns when no call is left, or after `patience`.
  void WaitForNone(std::chrono::milliseconds patience) const;
  // When a call ended last; long ago if none has.
  std::chrono::steady_clock::time_point last_end() const;

 private:
  const std::shared_ptr<Count> count_;
};

// Shuts the server down once `calls` have ended and peers have had a moment to read the ends, or `patience` is over.
// gRPC alone would spend all of it on a peer that does not answer its goodbye: one that is stopped, that has connected
// and said nothing, or that watches health.
void Close(grpc::Server& server, const LiveCalls& calls, std::chrono::milliseconds patience);

}  // namespace weir::channels

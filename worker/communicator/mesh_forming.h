#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/communicator/communicator.h"
#include "worker/communicator/file_descriptor.h"
#include "worker/communicator/hello.h"
#include "worker/communicator/socket_address.h"

// Connects one rank to all others: it listens for the ranks above its own number and connects to those below, and both
// ends check the other's hello.
//
// Strangers (a port scanner, a rank of another epoch, a hello that stops in the middle) are refused or outwaited
// without touching what is formed: a hello has a deadline and a size, and only so many may be unfinished at once.  A
// rank that is not there yet, or still in its last epoch, is tried again until the deadline.

namespace weir::worker {

class MeshForming {
 public:
  using Clock = std::chrono::steady_clock;

  MeshForming(const SocketGroupOptions& options, std::vector<SocketAddress> addresses);

  // links[r] is connected to rank r; links[own rank] is not open.  DEADLINE_EXCEEDED names the missing ranks and, for
  // each, what went wrong last; FAILED_PRECONDITION when the group has moved on to a later epoch; ABORTED when
  // cancelled.
  absl::StatusOr<std::vector<FileDescriptor>> Run();

 private:
  // A connection that this rank makes, to a rank below its own.
  struct Outgoing {
    enum class State { kIdle, kConnecting, kAwaitingAnswer, kFormed };
    State state = State::kIdle;
    FileDescriptor socket;
    Clock::time_point when;  // kIdle: of the next attempt; otherwise: when to give this one up
    std::string received;
    std::string problem;  // of the last attempt
    std::string refusal;  // of the last attempt that got an answer
  };
  // A connection that came in and has not said who it is.
  struct Incoming {
    FileDescriptor socket;
    Clock::time_point deadline;
    std::string received;
  };

  bool IsFormed() const;
  absl::Status Expired() const;

  void Wait();
  void AcceptAll(Listener& listener);
  void AdvanceIncoming(Incoming& incoming);
  void Answer(Incoming& incoming, const Hello& hello);
  absl::Status AdvanceOutgoing(int peer);
  void Attempt(Outgoing& outgoing, int peer);
  void SendHello(Outgoing& outgoing);
  absl::Status ReadAnswer(Outgoing& outgoing, int peer);
  void Retry(Outgoing& outgoing, std::string problem);
  void Refuse(Outgoing& outgoing, std::string refusal);
  std::string WhyMissing(int peer) const;
  void DropBroken();

  const SocketGroupOptions& options_;
  const std::vector<SocketAddress> addresses_;
  const Hello mine_;
  Clock::time_point deadline_;
  int listener_fd_ = -1;
  std::vector<Outgoing> outgoing_;        // [rank], ranks below this one
  std::vector<Incoming> incoming_;        // not yet known
  std::vector<FileDescriptor> accepted_;  // [rank], ranks above this one
  std::string stranger_;                  // what was wrong with the last connection that was refused
};

}  // namespace weir::worker

#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/communicator/file_descriptor.h"
#include "worker/communicator/message.h"

// The connections of one rank to all others, and the one thing collectives do with them: exchange a message with
// several peers at once.  The calling thread does the I/O.
//
// When an exchange fails the mesh is dead.  It tells the other ranks why before it closes, so that all of them name the
// rank at fault and not the first one that noticed.

namespace weir::worker {

// One message to a peer and one from it; both may be empty, none is optional: every exchange synchronises the two, so
// that neither is ever more than one message ahead of the other.
struct Transfer {
  int peer = 0;
  std::array<std::span<const std::byte>, 2> send;
  std::array<std::span<std::byte>, 2> receive;    // filled exactly
  std::vector<std::byte>* receive_any = nullptr;  // instead of `receive`: takes what comes, up to kMaxAnyBytes
};
inline constexpr uint64_t kMaxAnyBytes = uint64_t{4} << 30;

class SocketMesh {
 public:
  using Clock = std::chrono::steady_clock;

  // links[r] is connected to rank r and non-blocking; links[rank] is not open.
  SocketMesh(int rank, std::vector<FileDescriptor> links, std::chrono::milliseconds deadline,
             std::chrono::microseconds spin);
  ~SocketMesh();  // says goodbye to the others
  SocketMesh(const SocketMesh&) = delete;
  SocketMesh& operator=(const SocketMesh&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return static_cast<int>(links_.size()); }
  std::chrono::milliseconds deadline() const { return deadline_; }

  // Runs one collective.  Fails at once when the mesh is dead; kills it when `collective` fails.
  absl::Status Call(const std::function<absl::Status()>& collective);

  // Only inside Call.  header.payload_bytes is filled per transfer.  `patience` is how long after the start of the
  // collective the exchange may last, and a little more when more than one rank is missing.
  absl::Status Exchange(const MessageHeader& header, std::span<const Transfer> transfers,
                        std::chrono::milliseconds patience);

  // Between calls: collectives look at the flag every few milliseconds and end with ABORTED once it is true.  Null:
  // none.
  void Watch(const std::atomic<bool>* cancelled) { cancelled_ = cancelled; }

  // Any thread.
  void Abort(std::string reason);

 private:
  struct Link {
    FileDescriptor socket;
    bool has_left = false;    // said goodbye
    bool in_message = false;  // part of a message is sent: nothing else may be put in between
  };
  // The state of one Transfer.
  struct Flow {
    const Transfer* transfer = nullptr;
    Link* link = nullptr;
    MessageHeader out;
    MessageHeader in;
    uint64_t num_sent = 0;      // of header and payload
    uint64_t num_received = 0;  // of header and payload
    bool is_sent = false;
    bool is_received = false;
    bool is_done() const { return is_sent && is_received; }
  };

  void Begin(const MessageHeader& header, std::span<const Transfer> transfers);
  int NumMissing() const;
  absl::StatusOr<bool> AdvanceAll(const MessageHeader& expected);
  absl::StatusOr<bool> Send(Flow& flow);
  absl::StatusOr<bool> Receive(Flow& flow, const MessageHeader& expected);
  absl::StatusOr<bool> ReceiveHeader(Flow& flow, const MessageHeader& expected);
  absl::StatusOr<bool> ReceivePayload(Flow& flow);
  absl::Status CheckHeader(Flow& flow, const MessageHeader& expected);
  absl::Status Sleep(Clock::time_point until);
  absl::Status LookAtHangup(int peer);
  absl::Status ReadFailure(int peer, uint64_t num_bytes);
  absl::Status Expired(const MessageHeader& header, std::chrono::milliseconds patience) const;
  absl::Status HasLeft(int peer) const;
  absl::Status Broken(int peer, const std::string& how) const;
  absl::Status AbortStatus();

  absl::Status Die(absl::Status reason);  // io_mutex_ is held
  void FinishMessages();
  void Tell(Link& link, MessageKind kind, const std::string& text);

  const int rank_;
  const std::chrono::milliseconds deadline_;
  const std::chrono::microseconds spin_;
  FileDescriptor wake_;  // an eventfd that ends a sleep

  std::mutex io_mutex_;  // held by a collective, or by whoever buries the mesh
  std::vector<Link> links_;
  std::vector<Flow> flows_;
  Clock::time_point started_;
  absl::Status death_;  // OK while alive

  const std::atomic<bool>* cancelled_ = nullptr;
  std::atomic<bool> is_aborted_{false};
  std::mutex abort_mutex_;
  std::string abort_reason_;  // the first one
};

}  // namespace weir::worker

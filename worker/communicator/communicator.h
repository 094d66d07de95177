#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Collectives among the ranks of one group, under one epoch.
//
// Every rank calls the same collectives in the same order from one thread.  Each call has the group's deadline and
// either completes or fails: DEADLINE_EXCEEDED names the ranks that were waited for, UNAVAILABLE the rank whose
// connection broke, ABORTED carries Abort's reason.  After a failure the communicator is dead: every later call fails
// at once with the first reason; form a new one under the next epoch, in the same process if wished.
//
// Sums are taken in rank order, ((r0 + r1) + r2) + ..., element by element, so that results depend neither on arrival
// nor on how a buffer is cut, and all ranks hold the same bits.
//
// Buffers are host memory.  A backend whose operations are asynchronous is synchronised by the caller first.

namespace weir::worker {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // In place: data becomes the sum over ranks.  Same size everywhere.
  virtual absl::Status AllReduceSum(std::span<float> data) = 0;
  // `all` has world_size * mine.size() bytes; rank r's part stands at r * mine.size().  Same size everywhere.
  virtual absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  // Sends send[r] to rank r and appends what rank r sent here to receive[r] (cleared first).  Sizes need not be known
  // beforehand.  send and receive have world_size entries; own entries are copied.
  virtual absl::Status AllToAll(std::span<const std::span<const std::byte>> send,
                                std::span<std::vector<std::byte>> receive) = 0;
  // data of `root` on every rank.  Same size everywhere.
  virtual absl::Status Broadcast(std::span<std::byte> data, int root) = 0;
  virtual absl::Status Barrier() = 0;

  // From any thread, at any time: ends the call in progress and all later ones with ABORTED and `reason`.  Other ranks
  // see this rank's connections break.
  virtual void Abort(std::string reason) = 0;

  // The ranks of `members` (ascending, holding this rank) as a group of their own, over the same connections.  Must be
  // called by all of `members` at the same point.  Shares deadline, abort and death with its parent, which must outlive
  // it. Parent and child may not be used at the same time.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Subgroup(std::span<const int> members) = 0;
};

// Ranks as threads of one process.  Result [r] belongs to rank r's thread; they may be destroyed in any order.
std::vector<std::unique_ptr<Communicator>> NewThreadGroup(int world_size, std::chrono::milliseconds deadline);

struct SocketGroupOptions {
  int rank = 0;
  // Where each rank listens: "unix:/path" or "host:port".  Its size is the world size.
  std::vector<std::string> addresses;
  uint64_t epoch = 0;  // a hello of another epoch is refused, with both numbers
  // A shared secret: hellos that do not carry it are refused.  Any bytes; may be empty on a trusted loopback.
  std::string token;
  std::chrono::milliseconds deadline{2000};           // of each collective
  std::chrono::milliseconds connect_deadline{10000};  // to form the group
  // How long a wait spins before it sleeps in poll().  Spinning wants a core per rank: with more ranks than cores it is
  // harmful, so 0 = decide from the number of ranks on this host and its processors.
  std::chrono::microseconds spin{0};
  // Looked at while the group forms: once true, forming ends with ABORTED.  May be null.
  const std::atomic<bool>* cancelled = nullptr;
};
// Forms the full mesh and returns when every pair is connected; the error names the ranks that are missing.
absl::StatusOr<std::unique_ptr<Communicator>> NewSocketGroup(const SocketGroupOptions& options);

}  // namespace weir::worker

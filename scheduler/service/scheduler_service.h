#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "scheduler/core/block_key.h"
#include "scheduler/service/inbox.h"
#include "scheduler/service/replica_board.h"

// The gRPC face of the scheduler: a stream for each gateway, and questions about the replica.  Reads and checks
// requests, hands them to the event loop, and writes what it says.

namespace weir::scheduler {

struct ServiceOptions {
  std::string build;
  std::string listen = "127.0.0.1:0";  // "host:port" or "unix:/path"
  // What may gather for one gateway that does not read.  Beyond it the stream is cut off and its requests are
  // cancelled: a gateway that is behind by so much serves nobody.
  int64_t max_output_bytes = 16 << 20;
  BlockKeySecret secret;
};

class SchedulerServer {
 public:
  // Starts listening.  Null, with the reason in `error`, when it cannot.  The inbox and the board must outlive it.
  static std::unique_ptr<SchedulerServer> Start(const ServiceOptions& options, Inbox* inbox, ReplicaBoard* board,
                                                std::string& error);
  ~SchedulerServer();  // ends all streams at once

  int port() const;  // 0 on a unix socket
  // What grpc.health.v1 says.
  void SetServing(bool is_serving);
  // Lets streams end by themselves for so long.
  void Shutdown(int64_t patience_ms);

 private:
  class Parts;
  explicit SchedulerServer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace weir::scheduler

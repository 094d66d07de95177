#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "tests/worker/service/rank_inbox.h"
#include "worker/service/rank_messages.h"
#include "worker/step_plan.h"

// A scheduler's side of one rank's stream, for tests of the rank's side.  Connects, checks the rank's hello, sends
// orders, and puts what the rank says into an inbox: RankLoading while weights are read, RankHello when it is ready,
// then groups, results and failures, and RankLost when the stream is over, for whatever reason.  One object is one
// stream: make another to connect again.
//
// A rank that accepts the connection and then says nothing is the caller's to judge: it cancels.
//
// Any thread may call it.  Nothing blocks but the destructor, which waits for gRPC to let go.

namespace weir::worker {

struct RankClientOptions {
  std::string address;  // "unix:/path" or "host:port"
  std::string build;    // ours; a rank of another build is refused
  // What the rank must be.  RankLost is FAILED_PRECONDITION when it is not, and says what it is.
  int rank = 0;
  int tp = 1;
  int dp = 1;
  std::optional<uint64_t> manifest_hash;  // of the model; empty = any
};

class RankClient {
 public:
  static constexpr size_t kMaxUnsent = 64;  // orders that wait for a rank which does not read

  RankClient(RankClientOptions options, std::shared_ptr<RankInbox> inbox);
  ~RankClient();  // cancels the stream; its RankLost has been put into the inbox when this returns
  RankClient(const RankClient&) = delete;
  RankClient& operator=(const RankClient&) = delete;

  // Which events are this stream's.
  uint64_t stream() const;

  // False when the stream is over, or when kMaxUnsent orders wait; the latter ends the stream.
  bool FormGroup(const GroupOrder& order);
  bool SendPlan(const StepPlan& plan);
  bool Drain();
  void Cancel(const std::string& reason);  // RankLost carries it

 private:
  class Stream;
  std::unique_ptr<Stream> stream_;
};

}  // namespace weir::worker

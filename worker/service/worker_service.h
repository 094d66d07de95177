#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/service/rank_engine.h"
#include "worker/service/rank_messages.h"

// The rank's side of WorkerService.Run: hello, plans in, results out, groups, drain.  Serves from the moment it starts;
// until the weights are loaded a scheduler hears how far they are, and then the rank's hello.
//
// A stream whose hello fits ends the one before.  A stream ends by itself: OK after a drain; FAILED_PRECONDITION for a
// hello of another build; INVALID_ARGUMENT for a message that cannot be (a malformed plan, a plan before the hello);
// RESOURCE_EXHAUSTED when the scheduler sends too far ahead or does not read; ABORTED when another takes over.

namespace weir::worker {

struct WorkerServiceOptions {
  std::string build;
  std::string address;  // where to listen: "unix:/path" or "host:port"
};

class WorkerService {
 public:
  // UNAVAILABLE when the address cannot be listened at, or somebody listens there.
  static absl::StatusOr<std::unique_ptr<WorkerService>> Start(const WorkerServiceOptions& options);
  // Ends the stream and stops listening.  The engine must still be there.
  ~WorkerService();

  // From any one thread, while weights are read.  Told to the scheduler at most ten times a second.
  void ReportLoading(int64_t bytes_done, int64_t bytes_total);
  // Weights are loaded.  hello.build is set by the service.
  void Serve(RankEngine* engine, RankHello hello);

  // Takes no stream any more, and ends the present one when all that is ordered is done.  Returns at once.
  void Drain();
  // True when Drain, of this process or of the scheduler, has come to its end.
  bool IsDrained() const;

 private:
  class Core;
  class Stream;
  class Endpoint;
  WorkerService();
  std::shared_ptr<Core> core_;
  std::unique_ptr<Endpoint> endpoint_;
};

}  // namespace weir::worker

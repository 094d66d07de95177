#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/backend_choice.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/rank.h"
#include "worker/step_plan.h"

// All ranks of one replica behind one call, for tools and tests that drive plans without a scheduler.

namespace weir::tools {

struct RankGroupOptions {
  int32_t tp = 1;
  int32_t dp = 1;
  worker::BackendChoice backend;  // of each rank
  worker::RankOptions rank;       // of each rank; its layout is filled in from tp and dp
  // Of each exchange between ranks: how long a rank that stands still goes unnoticed.
  std::chrono::milliseconds collective_deadline{2000};
};

class RankGroup {
 public:
  virtual ~RankGroup() = default;

  // Runs one step on every rank.  The result holds the sequences of all data-parallel groups in plan order, rank 0's
  // loads, and the longest times of any rank.  An error other than INVALID_ARGUMENT ends the group; its message names
  // the rank.
  virtual absl::StatusOr<worker::StepResult> Run(const worker::StepPlan& plan) = 0;

  // "cpu: avx512-bf16, 2 threads", of one rank.
  virtual std::string device() const = 0;

  // The ranks' processes, by rank; empty when they are threads of this one.
  virtual std::vector<int> pids() const { return {}; }
};

// `progress(bytes done, bytes total)` sums over ranks; called from one thread at a time, may be null.
using LoadProgress = std::function<void(int64_t, int64_t)>;

// Ranks as threads of this process.
absl::StatusOr<std::unique_ptr<RankGroup>> NewThreadRanks(const worker::Checkpoint& checkpoint,
                                                          const RankGroupOptions& options,
                                                          const LoadProgress& progress);

// Ranks as processes of their own, children of this one, connected by Unix sockets; they end with it.  A rank that is
// killed or stands still is named within the collective deadline.  Requires: this process has no other threads yet.
absl::StatusOr<std::unique_ptr<RankGroup>> NewProcessRanks(const worker::Checkpoint& checkpoint,
                                                           const RankGroupOptions& options,
                                                           const LoadProgress& progress);

// One result from every rank's, in the way Run says.  INTERNAL when the ranks did not see the same plan.
absl::StatusOr<worker::StepResult> MergeResults(const worker::StepPlan& plan, std::vector<worker::StepResult> results);

}  // namespace weir::tools
